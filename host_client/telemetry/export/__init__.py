"""Delivery of spans to destinations, over a spool on disk."""
