"""The host's side of the trace, metrics and costs: what a session tells, and where it goes.

Importing this imports no OpenTelemetry module.
"""

from . import endpoints
from .config import TelemetryConfig
from .orphans import Orphans
from .pipeline import Telemetry, Who
from .sampling import SamplingConfig
from .setup import initialize_telemetry, telemetry_of
from .trace import SessionTrace

__all__ = [
    "Orphans",
    "SamplingConfig",
    "SessionTrace",
    "Telemetry",
    "TelemetryConfig",
    "Who",
    "endpoints",
    "initialize_telemetry",
    "telemetry_of",
]
