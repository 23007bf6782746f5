"""Tail sampling: spans are held until their trace is decided, then delivered or dropped together."""
