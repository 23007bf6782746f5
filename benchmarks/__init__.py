"""Benchmarks of the time and memory that Sandspan adds to the Claude Agent SDK alone (`make bench`)."""
