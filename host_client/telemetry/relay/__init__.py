"""The trust boundary: turns the OTLP requests of a sandbox into clean ones."""
