"""Rebuild, from events, the spans that a dead runner never sent. Pure.

An event that opens a span announces the span's id, its parent and its start. The runner sends each span when it ends.
A span that was announced and has not arrived by the end of the stream is an orphan. It is ended here: with the outcome
in its own events, or else as failed for the reason that the runner died of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from agent_runner.contract import genai
from agent_runner.contract.classify import classify
from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    BackgroundTask,
    ErrorType,
    QuestionRequest,
    QuestionResolved,
    Result,
    SubagentStart,
    ToolResult,
    ToolUse,
    TurnStart,
    to_json,
)
from agent_runner.contract.spans import Attributes, Span, Value
from host_client.telemetry.calls import ToolCalls

MAX_OPEN = 10_000
"""Maximum number of announced spans: forged events must not fill the host's memory."""


class Orphans:
    """Collect the spans of a session that were announced and have not arrived.

    ``common`` are attributes of all of them. ``calls`` are the session's, and observe each event before this does.
    """

    def __init__(self, common: Mapping[str, Value], calls: ToolCalls) -> None:
        self._common: Attributes = dict(common)
        self._calls = calls
        self._spans: dict[str, Span] = {}
        self._subagents: dict[str, str] = {}
        """The span ids of the calls that started subagents, by the span ids of the subagents."""
        self._in_background: set[str] = set()
        """Ids of spans of calls whose work continues in the background after their result."""

    def observe(self, event: AnyEvent) -> None:
        """Take note of an event that opens or ends a span."""
        match event:
            case TurnStart():
                self._open(event, "agent.execute", genai.invoke_agent(None, event.data.turn))
            case ToolUse():
                size = len(to_json(event.data.input))
                attributes = genai.execute_tool(event.data.id, event.data.name, size)
                self._open(event, f"execute_tool {attributes['gen_ai.tool.name']}", attributes)
            case SubagentStart(data=data):
                attributes = genai.invoke_subagent(data.agent_name)
                self._open(event, f"invoke_agent {attributes['gen_ai.agent.name']}", attributes)
                if event.span_id in self._spans:
                    self._subagents.setdefault(event.span_id, event.parent_span_id or "")
            case ApprovalRequest(data=data):
                self._open(event, "agent.approval", genai.approval(data.approval_id, data.tool_use_id, data.tool_name))
            case QuestionRequest(data=data):
                attributes = genai.approval(data.question_id, data.tool_use_id, "AskUserQuestion")
                self._open(event, "agent.approval", attributes)
            case BackgroundTask():
                self._observe_task(event)
            case ToolResult() | ApprovalResolved() | QuestionResolved() | Result():
                self._end(event)
            case _:
                pass

    def arrived(self, span_ids: Collection[str]) -> None:
        """Forget spans that the runner has sent."""
        for span_id in span_ids if self._spans else ():
            self._spans.pop(span_id, None)
            self._subagents.pop(span_id, None)
            self._in_background.discard(span_id)

    def take(self, error_type: ErrorType, message: str, now: int) -> Iterator[Span]:
        """Yield and forget the spans that have not arrived, all ended; ``now`` is in nanoseconds since the epoch."""
        self._end_subagents()
        for span in reversed(self._spans.values()):  # children before their parents, as a runner ends them
            if span.end is None:
                span.fail(error_type, message)
                span.end = max(span.start, now)
            span.attributes["sandspan.rebuilt"] = True
            yield span
        self._spans.clear()
        self._subagents.clear()
        self._in_background.clear()

    def _end_subagents(self) -> None:
        """End the subagents whose calls have ended, with the outcomes of the calls."""
        for subagent_id, call_id in self._subagents.items():
            call, subagent = self._spans.get(call_id), self._spans.get(subagent_id)
            if call is not None and subagent is not None and call.end is not None:
                subagent.end = max(subagent.start, call.end)
                if call.error_type is not None:
                    subagent.fail(call.error_type, call.error_message)

    def _open(self, event: AnyEvent, name: str, attributes: Attributes) -> None:
        if len(self._spans) >= MAX_OPEN or event.span_id in self._spans:
            return
        start = int(event.ts * 1e9)
        span = Span(name, event.trace_id, event.span_id, event.parent_span_id, start)
        span.attributes = {**self._common, **attributes}
        self._spans[event.span_id] = span

    def _observe_task(self, event: BackgroundTask) -> None:
        span = self._spans.get(event.span_id)
        if span is None:
            return
        if event.data.state == "running":
            self._in_background.add(event.span_id)
            span.attributes["tool.background"] = True
            return
        genai.set_exit_code(span, event.data.exit_code)
        self._in_background.discard(event.span_id)
        span.end = max(span.start, int(event.ts * 1e9))
        if event.data.state != "completed":
            error_type = classify(tool="failed" if event.data.state == "failed" else "cancelled").error_type
            span.fail(error_type, f"{event.data.state} in the background")

    def _end(self, event: ToolResult | ApprovalResolved | QuestionResolved | Result) -> None:
        span = self._spans.get(event.span_id)
        if span is None:
            return
        if event.span_id not in self._in_background:
            span.end = max(span.start, int(event.ts * 1e9))
        data = event.data
        match event:
            case ToolResult():
                call = self._calls.get(event.data.tool_use_id)
                waited = call.waited_ms if call is not None else 0.0
                genai.set_tool_outcome(span, event.data.bytes, event.data.is_error, None, waited)
                genai.set_exit_code(span, event.data.exit_code)
                genai.set_denied_by(span, event.data.denied_by)
                if event.data.executed_input is not None:
                    genai.set_executed(span, event.data.executed_input, None)
            case ApprovalResolved(data=data):
                genai.set_approval(span, data.decision, data.decided_by, data.wait_ms, data.input_sha256)
            case QuestionResolved(data=data):
                genai.set_approval(span, data.decision, data.decided_by, data.wait_ms)
            case Result():
                span.attributes["agent.cost_usd"] = event.data.cost_usd
        if error_type := getattr(data, "error_type", None):
            span.fail(error_type)
