"""How a session's spans are kept in the store: the host's own as they were exported, a sandbox's as they came. Pure."""

from __future__ import annotations

from host_client.store.base import OWN_SPANS as OWN

RELAYED = b"r"
"""What a payload begins with."""


def own(otlp: bytes) -> bytes:
    """Return what is kept of a serialized OTLP request with the host's own spans."""
    return OWN + otlp


def relayed(otlp: str) -> bytes:
    """Return what is kept of a ``telemetry`` event: base64 of a request, which is checked when it is read."""
    return RELAYED + otlp.encode()
