"""The facts that a session keeps of its agent: its conversation, costs, tool calls, errors and end. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent_runner.contract.protocol import AnyEvent, End, Error, ErrorData, ErrorType, Result, Start, ToolResult
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.costs.dollars import cost_of, total_usd

MAX_DENIED_TOOLS = 20
"""Maximum number of denied tools whose names are kept, as a sandbox may invent any number."""

_DENIED: tuple[ErrorType, ...] = ("permission_denied", "approval_timeout")
_BY_A_REPLY = (None, "approval")
"""Who denied a call that another reply would have allowed; a runner of an earlier version does not say who."""

_SILENT_FAILURE = ErrorData(error_type="internal", message="the runner failed without an error event")


@dataclass(frozen=True)
class SessionFailure:
    """Why a session failed."""

    error_type: ErrorType
    message: str


@dataclass(slots=True)
class SessionOutcome:
    """The facts from a session's events so far; ``cost_usd`` is the sum of all turns in US dollars.

    A call counts as denied if a person or a policy denied it, or if no decision came in time, but not if anything
    else denied it (``denied_by``). ``denied_tools`` are the names of the tools of these calls.
    """

    calls: ToolCalls
    """The session's tool calls; they have observed an event before `observe` is called with it."""
    claude_session_id: str | None = None
    takes_attachments: bool | None = None
    """Whether the runner is new enough for attachments; None before it has started."""
    cost_usd: float = 0.0
    exit_code: int | None = None
    last_error: ErrorData | None = None
    last_error_span: str | None = None
    """The id of the span that the last error belongs to."""
    last_result: Result | None = None
    structured_output: Any = None
    """The last structured output, unless a later turn has failed."""
    failure: SessionFailure | None = None
    tool_calls: int = 0
    denied_calls: int = 0
    denied_tools: list[str] = field(default_factory=list[str])
    unfinished: list[str] = field(default_factory=list[str])
    """Descriptions of the background tasks that the end of the runner ended."""

    def observe(self, event: AnyEvent) -> None:
        """Update the facts with an event of the runner."""
        match event:
            case Start():
                self.claude_session_id = event.data.session_id
                self.takes_attachments = event.data.takes_attachments
            case ToolResult():
                self._count_call(event)
            case Result():
                self.last_result = event
                if event.data.structured_output is not None or event.data.is_error:
                    # A turn that the CLI begins by itself after a background task gives none, and takes none away.
                    self.structured_output = event.data.structured_output
                self.cost_usd = total_usd(self.cost_usd, cost_of(event))
            case Error():
                self.last_error, self.last_error_span = event.data, event.span_id
            case End():
                self.exit_code = event.data.exit_code
                self.unfinished = event.data.unfinished
                if event.data.reason in ("failed", "misconfigured"):
                    # The error before the end is the reason. Earlier turns may have ended well.
                    why = self.last_error or _SILENT_FAILURE
                    self.fail(why.error_type, why.message)
            case _:
                pass

    def _count_call(self, event: ToolResult) -> None:
        self.tool_calls += 1
        if event.data.error_type not in _DENIED or event.data.denied_by not in _BY_A_REPLY:
            return
        self.denied_calls += 1
        call = self.calls.get(event.data.tool_use_id)
        name = call.name if call is not None else ""
        if name and name not in self.denied_tools and len(self.denied_tools) < MAX_DENIED_TOOLS:
            self.denied_tools.append(name)

    def note_exit_code(self, exit_code: int) -> None:
        """Note the exit code of a runner that sent no ``end`` event."""
        self.exit_code = exit_code

    def fail(self, error_type: ErrorType, message: str) -> None:
        """Note why the session failed; only the first reason is kept."""
        self.failure = self.failure or SessionFailure(error_type, message[:1000])

    @property
    def error_of_trace(self) -> SessionFailure | None:
        """Return the error of the session's span: why the session failed, else the error of its last turn."""
        error_type = self.last_result.data.error_type if self.last_result is not None else None
        if self.failure is not None or error_type is None:
            return self.failure
        # The subtype of the CLI's result is no reason: it is "success" if the model's API refused the request.
        last = self.last_error
        return SessionFailure(error_type, last.message if last is not None and last.error_type == error_type else "")
