"""The trust boundary: OTLP requests of a sandbox in, clean ones out."""
