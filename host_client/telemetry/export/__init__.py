"""Delivery of spans to destinations by way of a spool on disk."""
