"""The format of a session's spans in the store: the first byte marks the host's own or those of a sandbox. Pure."""

from __future__ import annotations

from host_client.store.base import OWN_SPANS as OWN

RELAYED = b"r"
"""First byte of spans from a sandbox."""


def own(otlp: bytes) -> bytes:
    """Return the stored form of a serialized OTLP request with the host's own spans."""
    return OWN + otlp


def relayed(otlp: str) -> bytes:
    """Return the stored form of a ``telemetry`` event's base64 OTLP request, which is checked only when it is read."""
    return RELAYED + otlp.encode()
