"""Follow the tool calls of one session by its events. Pure.

The rebuilt spans, the metrics, the ledger and the terminal each look something up about the call that an event belongs
to. The rules for that stand here: which events open, name and end a call, and for how long it is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    QuestionRequest,
    QuestionResolved,
    Result,
    ToolResult,
    ToolUse,
)

MAX_CALLS = 10_000
"""Limit of calls that are remembered: a flood of forged ones must not fill the host's memory. The oldest go first."""


@dataclass(slots=True)
class FollowedCall:
    """One call. Its spans are unknown while only an approval request has told of it."""

    id: str
    name: str
    span_id: str | None = None
    parent_span_id: str | None = None
    depth: int = 0
    """Number of subagents that the call is nested in."""
    waited_ms: float = 0.0
    """Time that its approvals and questions waited for a person."""
    is_ended: bool = False


class ToolCalls:
    """The calls of the current turn, and those of earlier turns that have not ended."""

    def __init__(self) -> None:
        self._by_id: dict[str, FollowedCall] = {}
        self._by_span: dict[str, FollowedCall] = {}
        self._waiting: dict[str, FollowedCall] = {}
        """Calls by the span of the approval or question that waits."""

    def observe(self, event: AnyEvent) -> None:
        """Take note of an event; call this before looking anything up that concerns it."""
        match event:
            case ToolUse():
                self._open(event)
            case ApprovalRequest():
                self._wait(event.span_id, event.data.tool_use_id, event.data.tool_name)
            case QuestionRequest():
                self._wait(event.span_id, event.data.tool_use_id, "AskUserQuestion")
            case ApprovalResolved() | QuestionResolved():
                if (call := self._waiting.pop(event.span_id, None)) is not None:
                    call.waited_ms += event.data.wait_ms
            case ToolResult():
                if (call := self._by_id.get(event.data.tool_use_id)) is not None:
                    call.is_ended = True
            case Result():
                for call in [call for call in self._by_id.values() if call.is_ended]:
                    self._forget(call)
            case _:
                pass

    def get(self, tool_use_id: str | None) -> FollowedCall | None:
        """Return a call by the id that the model gave it."""
        return self._by_id.get(tool_use_id or "")

    def of_span(self, span_id: str) -> FollowedCall | None:
        """Return a call by its span."""
        return self._by_span.get(span_id)

    def _open(self, event: ToolUse) -> None:
        call = self._known(event.data.id, event.data.name)
        if call.span_id is not None:
            self._by_span.pop(call.span_id, None)
        parent = self.get(event.data.parent_tool_use_id)
        call.name, call.span_id, call.parent_span_id = event.data.name, event.span_id, event.parent_span_id
        call.depth = parent.depth + 1 if parent is not None else 0
        self._by_span[event.span_id] = call

    def _wait(self, span_id: str, tool_use_id: str, name: str) -> None:
        call = self._known(tool_use_id, name)
        if len(self._waiting) < MAX_CALLS:
            self._waiting[span_id] = call

    def _known(self, tool_use_id: str, name: str) -> FollowedCall:
        """Return a call, a new one for an unknown id: an approval may be asked for before the call is told."""
        if (call := self._by_id.get(tool_use_id)) is None:
            if len(self._by_id) >= MAX_CALLS:
                self._forget(next(iter(self._by_id.values())))
            call = self._by_id[tool_use_id] = FollowedCall(tool_use_id, name)
        return call

    def _forget(self, call: FollowedCall) -> None:
        del self._by_id[call.id]
        if call.span_id is not None:
            self._by_span.pop(call.span_id, None)
