"""Rebuilds, from events, the spans a dead runner never sent. Pure.

Every event that opens a span names it, its parent and its start; the runner sends each span when it
ends. What was announced and not sent by the end of the stream is an orphan: it is ended here, with
what its own events said of its end, or as failed for the reason the runner died of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from agent_runner.contract import genai
from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    ErrorType,
    QuestionRequest,
    QuestionResolved,
    Result,
    ToolResult,
    ToolUse,
    TurnStart,
    to_json,
)
from agent_runner.contract.spans import Attributes, Span, Value

MAX_OPEN = 10_000
"""A flood of forged openings must not fill the host's memory."""

MAX_UNREAD = 256
MAX_UNREAD_BYTES = 64 * 1024
"""Most events that wait to be read, and most bytes of them: in a row they cost a fraction of one now and then."""

_OF_A_WAIT = frozenset({ApprovalRequest, ApprovalResolved, QuestionRequest, QuestionResolved})
"""Events that tell of the tool's span, too, which may not come where theirs does."""

_TELLING = _OF_A_WAIT | {TurnStart, ToolUse, ToolResult, Result}


class Orphans:
    """What has been announced and not arrived."""

    def __init__(self, common: Mapping[str, Value]) -> None:
        self._common: Attributes = dict(common)
        self._spans: dict[str, Span] = {}
        self._waited: dict[str, float] = {}
        """By the id of an open tool's span, how long its approvals waited so far."""
        self._unread: list[AnyEvent] = []
        self._unread_bytes = 0

    def observe(self, event: AnyEvent, size: int = 0) -> None:
        """Take note of an event, of so many bytes."""
        if type(event) not in _TELLING:
            return
        self._unread.append(event)
        self._unread_bytes += size
        is_full = len(self._unread) >= MAX_UNREAD or self._unread_bytes >= MAX_UNREAD_BYTES
        if is_full or type(event) in _OF_A_WAIT:
            self._read_all()

    def _read_all(self) -> None:
        for event in self._unread:
            self._read(event)
        self._unread.clear()
        self._unread_bytes = 0

    def _read(self, event: AnyEvent) -> None:
        match event:
            case TurnStart():
                self._open(event, "agent.execute", genai.invoke_agent(None, event.data.turn))
            case ToolUse():
                size = len(to_json(event.data.input))
                attributes = genai.execute_tool(event.data.id, event.data.name, size)
                self._open(event, f"execute_tool {attributes['gen_ai.tool.name']}", attributes)
            case ApprovalRequest():
                data = event.data
                self._open(event, "agent.approval", genai.approval(data.approval_id, data.tool_use_id, data.tool_name))
            case QuestionRequest():
                data = event.data
                self._open(
                    event, "agent.approval", genai.approval(data.question_id, data.tool_use_id, "AskUserQuestion")
                )
            case ToolResult() | ApprovalResolved() | QuestionResolved() | Result():
                self._end(event)
            case _:
                pass

    def arrived(self, span_ids: Collection[str]) -> None:
        """Spans came by themselves: what was said of them need not be read any more."""
        self._unread = [event for event in self._unread if event.span_id not in span_ids]
        if not self._unread:  # else what is left counts for more than it is, and is read the sooner
            self._unread_bytes = 0
        for span_id in span_ids if self._spans else ():
            self._spans.pop(span_id, None)
            self._waited.pop(span_id, None)

    def take(self, error_type: ErrorType, message: str, now: int) -> Iterator[Span]:
        """Yield what never arrived, ended; ``now`` in nanoseconds since the epoch."""
        self._read_all()
        for span in self._spans.values():
            if span.end is None:
                span.fail(error_type, message)
                span.end = max(span.start, now)
            span.attributes["sandspan.rebuilt"] = True
            yield span
        self._spans.clear()

    def _open(self, event: AnyEvent, name: str, attributes: Attributes) -> None:
        if len(self._spans) >= MAX_OPEN or event.span_id in self._spans:
            return
        start = int(event.ts * 1e9)
        span = Span(name, event.trace_id, event.span_id, event.parent_span_id, start)
        span.attributes = {**self._common, **attributes}
        self._spans[event.span_id] = span

    def _end(self, event: ToolResult | ApprovalResolved | QuestionResolved | Result) -> None:
        span = self._spans.get(event.span_id)
        if span is None:
            return
        span.end = max(span.start, int(event.ts * 1e9))
        data = event.data
        match event:
            case ToolResult():
                waited = self._waited.pop(event.span_id, 0.0)
                genai.set_tool_outcome(span, event.data.bytes, event.data.is_error, None, waited)
            case ApprovalResolved() | QuestionResolved():
                genai.set_approval(span, event.data.decision, event.data.decided_by, event.data.wait_ms)
                if span.parent_span_id in self._spans:
                    tool = span.parent_span_id
                    self._waited[tool] = self._waited.get(tool, 0.0) + event.data.wait_ms
            case Result():
                span.attributes["agent.cost_usd"] = event.data.cost_usd
        if error_type := getattr(data, "error_type", None):
            span.fail(error_type)
