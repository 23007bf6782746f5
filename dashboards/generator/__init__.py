"""Builds the dashboard files from one table of panels (`panels`): ``python -m dashboards.generator`` writes them.

A panel's queries are values (`queries`), which each backend's module puts into its own language: `promql` for
Grafana and Prometheus, `signoz`. Langfuse asks its spans, not metrics, so its widgets are a table of their own.
"""
