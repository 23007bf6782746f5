"""The half of Sandspan that runs on the host: sandboxes, sessions, approvals and the trace."""

from agent_runner.contract import protocol as events

from .client.agent import AgentResult, run_agent
from .client.attachments import Attachment
from .client.hooks import HookMatcher
from .client.host_tools import HostCall, HostTool, current_call, host_tool
from .client.options import AgentOptions, options_from
from .client.session import Session, Whereabouts, open_session
from .client.takeover import take_over
from .errors import SandspanError
from .sandbox import LocalSandbox, Sandbox
from .telemetry import Telemetry
from .workspace import Changes, FileChange, Workspace

__all__ = [
    "AgentOptions",
    "AgentResult",
    "Attachment",
    "Changes",
    "FileChange",
    "HookMatcher",
    "HostCall",
    "HostTool",
    "LocalSandbox",
    "Sandbox",
    "SandspanError",
    "Session",
    "Telemetry",
    "Whereabouts",
    "Workspace",
    "current_call",
    "events",
    "host_tool",
    "open_session",
    "options_from",
    "run_agent",
    "take_over",
]
