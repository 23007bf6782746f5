"""The facts that a session keeps of its agent: its conversation, its costs, its errors and its end. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent_runner.contract.protocol import AnyEvent, End, Error, ErrorData, ErrorType, Result, Start
from host_client.telemetry.costs.dollars import cost_of, total_usd

_SILENT_FAILURE = ErrorData(error_type="internal", message="the runner failed and did not say why")


@dataclass(frozen=True)
class SessionFailure:
    """Why a session failed."""

    error_type: ErrorType
    message: str


@dataclass(slots=True)
class SessionOutcome:
    """The facts so far; ``cost_usd`` is the sum of all turns in US dollars."""

    claude_session_id: str | None = None
    cost_usd: float = 0.0
    exit_code: int | None = None
    last_error: ErrorData | None = None
    last_result: Result | None = None
    failure: SessionFailure | None = None

    def observe(self, event: AnyEvent) -> None:
        """Take in an event of the runner."""
        match event:
            case Start():
                self.claude_session_id = event.data.session_id
            case Result():
                self.last_result = event
                self.cost_usd = total_usd(self.cost_usd, cost_of(event))
            case Error():
                self.last_error = event.data
            case End():
                self.exit_code = event.data.exit_code
                if event.data.reason in ("failed", "misconfigured"):
                    # The error before the end is the reason. Earlier turns may have ended well.
                    why = self.last_error or _SILENT_FAILURE
                    self.fail(why.error_type, why.message)
            case _:
                pass

    def note_exit_code(self, exit_code: int) -> None:
        """Note how a runner ended that told no end."""
        self.exit_code = exit_code

    def fail(self, error_type: ErrorType, message: str) -> None:
        """Note why the session failed; the first reason counts."""
        self.failure = self.failure or SessionFailure(error_type, message[:1000])

    @property
    def error_of_trace(self) -> SessionFailure | None:
        """Return the error of the session's span: why the session failed, else the error of its last turn."""
        if self.failure is None and self.last_result is not None and self.last_result.data.error_type:
            return SessionFailure(self.last_result.data.error_type, self.last_result.data.subtype)
        return self.failure
