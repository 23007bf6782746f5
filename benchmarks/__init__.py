"""Benchmarks of the time and memory that Sandspan adds to the bare Claude Agent SDK (`make bench`)."""
