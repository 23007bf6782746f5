"""Measure latency, CPU and memory of the service's streams, and of a bare Starlette app that streams the same lines."""
