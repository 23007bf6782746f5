"""The host's side of the trace: its own spans, those the sandbox relays, and those a dead runner left."""

from .default import telemetry_of
from .orphans import Orphans
from .pipeline import Telemetry, Who
from .trace import SessionTrace

__all__ = ["Orphans", "SessionTrace", "Telemetry", "Who", "telemetry_of"]
