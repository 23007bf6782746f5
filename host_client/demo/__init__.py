"""The scripts and the broken program of both demos."""
