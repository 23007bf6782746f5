"""Telemetry of the host: traces, metrics and costs of sessions, from their events to the backends.

Importing this package imports no OpenTelemetry module.
"""

from .config import TelemetryConfig
from .export import endpoints
from .setup.start import initialize_telemetry, telemetry_of
from .tail.pipeline import Telemetry, Who
from .tail.sampling import SamplingConfig
from .trace.orphans import Orphans
from .trace.root import Root, caller_of, root_below, root_of
from .trace.session_trace import OnOwnSpans, SessionTrace

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
    "root_below",
    "root_of",
    "telemetry_of",
]
