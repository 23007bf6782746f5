"""Tail sampling: spans are held until their trace is complete, then kept or dropped together."""
