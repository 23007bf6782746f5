"""Metrics of sessions, for Prometheus and OTLP."""
