"""Tests of the stores; all stores pass the same conformance suite."""
