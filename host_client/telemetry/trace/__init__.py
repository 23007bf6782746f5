"""Traces of sessions: the host's own spans, and the spans that a dead runner left open."""
