"""Runs one prompt in a session of its own and returns the result."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_runner.contract.protocol import AnyEvent, ErrorType
from host_client.errors import AgentError
from host_client.sandbox import Sandbox
from host_client.telemetry import Telemetry
from host_client.workspace import Changes, Workspace

from ._arguments import check_arguments
from ._caller_parts import AnyOptions
from ._outcome import SessionOutcome
from ._output import output_form
from .attachments import Attachable
from .hooks import HooksByEvent
from .host_tools import AnyTool
from .options import ApprovalPolicy
from .session import Approver, Session, open_session

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_ALLOW = (
    'approvals="auto" allows every call, a function as approvals decides each, and AgentOptions(allowed_tools=…)'
    " allows some tools"
)

OnEvent = Callable[[AnyEvent], Awaitable[None] | None]
OnResult = Callable[["AgentResult"], Awaitable[None] | None]


@dataclass(frozen=True)
class AgentResult:
    """The result of a run. ``cost_usd`` is in US dollars; ``duration_ms`` is the agent's own time."""

    text: str | None
    is_error: bool
    error_type: ErrorType | None
    error_message: str | None
    trace_id: str
    session_id: str | None
    """Claude's session id, which `AgentOptions.resume` takes to continue the conversation."""
    cost_usd: float = 0.0
    duration_ms: float = 0.0
    num_turns: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model_usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    exit_code: int | None = None
    spans: tuple[ReadableSpan, ...] = ()
    """All spans of the trace, the host's and the sandbox's; empty with telemetry off."""
    tool_calls: int = 0
    denied_calls: int = 0
    """Number of tool calls that a person or a policy denied, or for which no decision came in time."""
    denied_tools: tuple[str, ...] = ()
    """Names of the tools of the denied calls, each once."""
    structured_output: Any = None
    """The answer in the form of `AgentOptions.output_format`, as JSON."""
    output: Any = None
    """The answer as an instance of `AgentOptions.output_type`."""
    unfinished: tuple[str, ...] = ()
    """Commands and subagents that still ran in the background and were ended with the run."""
    changes: Changes | None = None
    """What the run changed in its ``cwd``; None without one, and if that is not known (see the log)."""

    @property
    def remark(self) -> str | None:
        """Return advice if every tool call was denied: the agent may have ended well and still have done nothing."""
        return denial_of(self, _ALLOW)

    def raise_for_error(self) -> AgentResult:
        """Raise `AgentError` if the run ended in an error; return the result otherwise."""
        if self.is_error:
            raise AgentError(self.error_message or "the agent failed", self.error_type or "internal")
        return self


async def run_agent(
    prompt: str,
    options: AnyOptions | None = None,
    *,
    further_options: Mapping[str, Any] | None = None,
    attachments: Sequence[Attachable] = (),
    sandbox: Sandbox | None = None,
    approvals: ApprovalPolicy | Approver = "deny",
    host_tools: Sequence[AnyTool] = (),
    hooks: HooksByEvent | None = None,
    telemetry: Telemetry | None = None,
    traceparent: str | None = None,
    upload: Path | None = None,
    cwd: Workspace | Path | str | None = None,
    on_event: OnEvent | None = None,
    on_result: OnResult | None = None,
    environ: Mapping[str, str] | None = None,
) -> AgentResult:
    """Run one prompt to its end; see `open_session` for the arguments.

    ``approvals`` is ``"deny"`` by default; if that denied every tool call, the result has a ``remark`` that says so.
    ``on_event`` is called with every event, ``on_result`` once with the result. Raise `ConfigurationError` and
    `SandboxError`; an error of the agent itself is in the result.
    """
    check_arguments(on_event=on_event, on_result=on_result)
    async with open_session(
        prompt,
        options,
        further_options=further_options,
        attachments=attachments,
        sandbox=sandbox,
        approvals=approvals,
        host_tools=host_tools,
        hooks=hooks,
        telemetry=telemetry,
        traceparent=traceparent,
        upload=upload,
        cwd=cwd,
        environ=environ,
    ) as session:
        await session.finish()
        async for event in session:
            if on_event is not None and inspect.isawaitable(waiting := on_event(event)):
                await waiting
    result = result_of(session)
    if on_result is not None and inspect.isawaitable(waiting := on_result(result)):
        await waiting
    return result


def result_of(session: Session) -> AgentResult:
    """Return the result of a closed session."""
    outcome = session.outcome
    data = outcome.last_result.data if outcome.last_result is not None else None
    error_type, message = _error_of(outcome)
    output = None
    if error_type is None and data is not None and session.options.output_type is not None:
        try:
            output = output_form(session.options.output_type).read(outcome.structured_output)
        except Exception as error:  # the caller's type may raise any, and the result must not be lost
            error_type, message = "tool_error", f"the structured output does not fit output_type: {error}"
    return AgentResult(
        text=data.result if data else None,
        is_error=error_type is not None,
        error_type=error_type,
        error_message=message,
        trace_id=session.trace_id,
        session_id=outcome.claude_session_id,
        cost_usd=outcome.cost_usd,
        duration_ms=data.duration_ms if data else 0.0,
        num_turns=data.num_turns if data else 0,
        usage=data.usage if data else {},
        model_usage=data.model_usage if data else {},
        exit_code=outcome.exit_code,
        spans=tuple(session.trace.kept),
        tool_calls=outcome.tool_calls,
        denied_calls=outcome.denied_calls,
        denied_tools=tuple(outcome.denied_tools),
        structured_output=outcome.structured_output,
        output=output,
        unfinished=tuple(outcome.unfinished),
        changes=session.last_changes,
    )


def denial_of(result: AgentResult, advice: str) -> str | None:
    """Return a remark that every tool call was denied, with the advice; None if one was allowed or none was made."""
    if not result.tool_calls or result.denied_calls < result.tool_calls:
        return None
    tools = f" ({', '.join(result.denied_tools)})" if result.denied_tools else ""
    return f"every tool call was denied{tools}: {advice}"


def _error_of(outcome: SessionOutcome) -> tuple[ErrorType | None, str | None]:
    if outcome.failure is not None:
        return outcome.failure.error_type, outcome.failure.message
    last, error = outcome.last_result, outcome.last_error
    if last is None:
        return (error.error_type, error.message) if error else ("internal", "the run ended without a result")
    if last.data.is_error:
        error_type, text = last.data.error_type or "internal", last.data.result
        if error_type == "tool_error" and error is not None and outcome.last_error_span == last.span_id:
            text = error.message  # a turn without the structured output has the agent's own text as its result
        return error_type, text or last.data.subtype
    return None, None
