"""The half of Sandspan that runs on the host: sandboxes, sessions, approvals and the trace."""

from agent_runner import protocol as events

from .agent import AgentResult, run_agent
from .config import AgentOptions
from .errors import SandspanError
from .sandbox import LocalSandbox, Sandbox
from .session import Session, Whereabouts, open_session
from .takeover import take_over
from .telemetry import Telemetry

__all__ = [
    "AgentOptions",
    "AgentResult",
    "LocalSandbox",
    "Sandbox",
    "SandspanError",
    "Session",
    "Telemetry",
    "Whereabouts",
    "events",
    "open_session",
    "run_agent",
    "take_over",
]
