"""The command line ``host_client`` and what it prints."""
