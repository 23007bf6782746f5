"""The host's side of the trace, metrics and costs: what a session tells, and where it goes.

Importing this imports no OpenTelemetry module.
"""

from . import endpoints
from .config import TelemetryConfig
from .orphans import Orphans
from .pipeline import Telemetry, Who
from .root import Root, caller_of, root_of
from .sampling import SamplingConfig
from .setup import initialize_telemetry, telemetry_of
from .trace import OnOwnSpans, SessionTrace

__all__ = [
    "OnOwnSpans",
    "Orphans",
    "Root",
    "SamplingConfig",
    "SessionTrace",
    "Telemetry",
    "TelemetryConfig",
    "Who",
    "caller_of",
    "endpoints",
    "initialize_telemetry",
    "root_of",
    "telemetry_of",
]
