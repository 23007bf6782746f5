"""Follow the tool calls of one session by its events. Pure.

A session has one `ToolCalls`. Its trace feeds it with each event; the rebuilt spans, the metrics, the ledger and the
terminal read it. They may read later than the event, and in other threads, so a call is not forgotten when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    QuestionRequest,
    QuestionResolved,
    SubagentStart,
    ToolUse,
)
from agent_runner.contract.sanitize import BRIEF_LENGTH, brief

MAX_CALLS = 10_000
"""Maximum number of calls that are remembered, the latest ones: forged events must not fill the host's memory."""


@dataclass(slots=True)
class FollowedCall:
    """One tool call. Its spans are unknown until its ``tool_use`` event; an approval request may come before that."""

    id: str
    name: str
    """In brief and redacted, as the model may call a tool that does not exist."""
    span_id: str | None = None
    subagent_span_id: str | None = None
    turn_span_id: str | None = None
    agent_span_id: str = ""
    """Id of the span of the agent that made the call: of a turn, or of a subagent."""
    depth: int = 0
    """Number of subagents that the call is nested in."""
    waited_ms: float = 0.0
    """Milliseconds that its approvals and questions waited for a person."""


class ToolCalls:
    """The latest tool calls of one session. Only one thread may call `observe`; any thread may read."""

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
            case SubagentStart():
                self._begin_subagent(event)
            case ApprovalRequest():
                self._wait(event.span_id, event.data.tool_use_id, event.data.tool_name)
            case QuestionRequest():
                self._wait(event.span_id, event.data.tool_use_id, "AskUserQuestion")
            case ApprovalResolved() | QuestionResolved():
                if (call := self._waiting.pop(event.span_id, None)) is not None:
                    call.waited_ms += event.data.wait_ms
            case _:
                pass

    def get(self, tool_use_id: str | None) -> FollowedCall | None:
        """Return a call by the id that the model gave it."""
        return self._by_id.get((tool_use_id or "")[:BRIEF_LENGTH])

    def turn_of(self, span_id: str) -> str:
        """Return the id of a turn's span, given that of a call or subagent in it; return any other id as it is."""
        call = self._by_span.get(span_id)
        return span_id if call is None or call.turn_span_id is None else call.turn_span_id

    def agent_of(self, span_id: str) -> str:
        """Return the id of the agent's span, given that of a call of the agent; return any other id as it is."""
        call = self._by_span.get(span_id)
        return call.agent_span_id if call is not None and call.span_id == span_id else span_id

    def _open(self, event: ToolUse) -> None:
        name = brief(event.data.name)
        call = self._known(event.data.id, name)
        self._forget_spans(call)
        parent = self.get(event.data.parent_tool_use_id)
        call.name, call.span_id = name, event.span_id
        call.turn_span_id = self.turn_of(event.parent_span_id or "")
        call.agent_span_id = self.agent_of(event.parent_span_id or "")
        call.depth = parent.depth + 1 if parent is not None else 0
        self._by_span[event.span_id] = call

    def _begin_subagent(self, event: SubagentStart) -> None:
        call = self.get(event.data.tool_use_id)
        if call is not None and call.subagent_span_id is None:
            call.subagent_span_id = event.span_id
            self._by_span[event.span_id] = call

    def _wait(self, span_id: str, tool_use_id: str, name: str) -> None:
        call = self._known(tool_use_id, brief(name))
        if len(self._waiting) < MAX_CALLS:
            self._waiting[span_id] = call

    def _known(self, tool_use_id: str, name: str) -> FollowedCall:
        """Return a call, a new one for an unknown id; the oldest call makes room for it."""
        tool_use_id = tool_use_id[:BRIEF_LENGTH]  # a forged id must not fill the host's memory either
        if (call := self._by_id.get(tool_use_id)) is None:
            if len(self._by_id) >= MAX_CALLS:
                self._forget_spans(self._by_id.pop(next(iter(self._by_id))))
            call = self._by_id[tool_use_id] = FollowedCall(tool_use_id, name)
        return call

    def _forget_spans(self, call: FollowedCall) -> None:
        for span_id in (call.span_id, call.subagent_span_id):
            self._by_span.pop(span_id or "", None)
        call.span_id = call.subagent_span_id = None
