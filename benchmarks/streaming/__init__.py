"""The service's streams: latency, CPU and memory, beside a bare Starlette app that streams the same lines."""
