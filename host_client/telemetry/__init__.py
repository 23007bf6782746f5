"""The host's side of the trace: its own spans, those the sandbox relays, and those a dead runner left."""

from .orphans import Orphans
from .pipeline import Telemetry, telemetry_from
from .trace import SessionTrace

__all__ = ["Orphans", "SessionTrace", "Telemetry", "telemetry_from"]
