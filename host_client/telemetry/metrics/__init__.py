"""Metrics of sessions, exported to Prometheus and over OTLP."""
