"""The telemetry of a session that was given none: what the environment asks for, made once a process."""

from __future__ import annotations

from collections.abc import Mapping

from .pipeline import Telemetry


def telemetry_of(environ: Mapping[str, str]) -> Telemetry:
    """Return the telemetry of an environment; ``OTEL_ENABLED=false`` or ``OTEL_SDK_DISABLED=true`` turn it off."""
    off = environ.get("OTEL_ENABLED", "").lower() == "false" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return Telemetry(enabled=not off)
