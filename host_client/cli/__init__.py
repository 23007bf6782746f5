"""The command ``host_client``."""
