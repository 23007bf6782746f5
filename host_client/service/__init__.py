"""The service: sessions over HTTP and SSE, for many readers and the people who decide."""
