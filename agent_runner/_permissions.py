"""Asks the person: `can_use_tool` of the SDK as approval and question events, spans and waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from claude_agent_sdk import (
    PermissionResultAllow,
    PermissionResultDeny,
    PermissionUpdate,
    ToolPermissionContext,
)

from ._desk import Desk, Outcome, RefusedError, Reply, Unanswered
from ._events import Events
from ._translate import ToolCall, Translator
from .contract import genai
from .contract.approvals import contradiction_in, fault_of_answer, fault_of_approval, outcome_of
from .contract.protocol import (
    Answer,
    Approval,
    ApprovalRequestData,
    ApprovalResolvedData,
    QuestionRequestData,
    QuestionResolvedData,
    input_digest,
    to_json,
)
from .contract.spans import Span

QUESTION_TOOL = "AskUserQuestion"

MAX_INPUT = 4 * 1024 * 1024
"""A larger input cannot be shown to a person, so nobody can approve it."""

_SEEN_SECONDS = 0.25

Permission = PermissionResultAllow | PermissionResultDeny


class Permissions:
    """The person's desk: what waits for a decision, and what the decision does."""

    def __init__(self, translator: Translator, events: Events, timeout: float) -> None:
        self._translator = translator
        self._events = events
        self._timeout = timeout
        self._approvals: Desk[Approval] = Desk("approval")
        self._questions: Desk[Answer] = Desk("question")

    # -- from the host ----------------------------------------------------------------------------

    def answer(self, reply: Approval | Answer) -> None:
        """Deliver a person's decision; raise `RefusedError` if nothing waits for it."""
        if isinstance(reply, Answer):
            self._questions.answer(reply.question_id, reply)
        elif (fault := contradiction_in(reply)) is not None:
            raise RefusedError(fault)
        else:
            self._approvals.answer(reply.approval_id, reply)

    def cancel_all(self) -> None:
        """The turn is interrupted: nothing waits any more."""
        self._approvals.cancel_all()
        self._questions.cancel_all()

    def close(self) -> None:
        """The host is gone: its death denies."""
        self._approvals.close()
        self._questions.close()

    # -- from the agent ---------------------------------------------------------------------------

    async def can_use_tool(self, name: str, tool_input: dict[str, Any], context: ToolPermissionContext) -> Permission:
        """Decide one call (the SDK's callback)."""
        tool_id = context.tool_use_id or ""
        # The message that brings the call is read first, so that events keep their order.
        await self._translator.seen(tool_id, _SEEN_SECONDS)
        parent = self._translator.caller_of(context.agent_id)
        tool = self._translator.tool(tool_id, name, tool_input, parent)
        if self._translator.turn is not None and self._translator.turn.interrupted:
            tool.refusal = "cancelled"  # nobody is asked for a turn that was ended
            return _unanswered("cancelled")
        if name == QUESTION_TOOL:
            return await self._ask(tool, tool_id, tool_input)
        if len(to_json(tool_input)) > MAX_INPUT:
            tool.refusal = "deny"
            return PermissionResultDeny(message="The input is too large to be shown to a person.")
        return await self._approve(tool, tool_id, tool_input, context)

    async def _approve(
        self, tool: ToolCall, tool_id: str, tool_input: dict[str, Any], context: ToolPermissionContext
    ) -> Permission:
        digest = input_digest(tool_input)
        key = self._approvals.open(lambda reply: fault_of_approval(reply, digest))
        request = ApprovalRequestData(
            approval_id=key,
            tool_use_id=tool_id,
            tool_name=tool.name,
            input=tool_input,
            input_sha256=digest,
            expires_at=self._deadline(),
            reason=context.title or context.decision_reason or context.description,
            suggestions=[update.to_dict() for update in context.suggestions],
        )

        def resolved(reply: Approval | Unanswered, wait_ms: float) -> ApprovalResolvedData:
            decision = reply.outcome if isinstance(reply, Unanswered) else outcome_of(reply, digest)
            return ApprovalResolvedData(
                approval_id=key, tool_use_id=tool_id, decision=decision, decided_by=reply.decided_by, wait_ms=wait_ms
            )

        span = self._open_span(tool, tool_id, key)
        return _permission(await self._reply(self._approvals, key, request, resolved, tool, span), context)

    async def _ask(self, tool: ToolCall, tool_id: str, tool_input: dict[str, Any]) -> Permission:
        questions: list[Any] = list(tool_input.get("questions") or ())
        key = self._questions.open(lambda reply: fault_of_answer(reply.answers, questions))
        request = QuestionRequestData(
            question_id=key, tool_use_id=tool_id, questions=questions, expires_at=self._deadline()
        )

        def resolved(reply: Answer | Unanswered, wait_ms: float) -> QuestionResolvedData:
            answers, decision = (None, reply.outcome) if isinstance(reply, Unanswered) else (reply.answers, "answered")
            return QuestionResolvedData(
                question_id=key, answers=answers, decision=decision, decided_by=reply.decided_by, wait_ms=wait_ms
            )

        span = self._open_span(tool, tool_id, key)
        reply = await self._reply(self._questions, key, request, resolved, tool, span)
        if isinstance(reply, Unanswered):
            return _unanswered(reply.outcome)
        return PermissionResultAllow(updated_input={**tool_input, "answers": reply.answers})

    def _deadline(self) -> float:
        return round(time.time() + self._timeout, 3)

    def _open_span(self, tool: ToolCall, tool_id: str, key: str) -> Span:
        return self._translator.spans.open_child("agent.approval", tool.span, genai.approval(key, tool_id, tool.name))

    async def _reply(
        self,
        desk: Desk[Reply],
        key: str,
        request: ApprovalRequestData | QuestionRequestData,
        resolved: Callable[[Reply | Unanswered, float], ApprovalResolvedData | QuestionResolvedData],
        tool: ToolCall,
        span: Span,
    ) -> Reply | Unanswered:
        """Emit a request, wait for its reply, emit what ``resolved`` makes of it, and end the span of the wait."""
        self._events.emit(request, span, opens=True)
        reply: Reply | Unanswered = Unanswered("cancelled")
        try:
            reply = await desk.wait(key, self._timeout)
        finally:
            # Also when the CLI withdraws the request, which cancels this task.
            now = self._translator.spans.clock()
            wait_ms = round((now - span.start) / 1e6, 3)
            data = resolved(reply, wait_ms)
            tool.wait_ms += wait_ms
            if data.decision in ("deny", "timeout", "cancelled"):
                tool.refusal = data.decision
            genai.set_approval(span, data.decision, reply.decided_by, wait_ms)
            self._translator.spans.close(span, end=now)
            self._events.emit(data, span)
        return reply


_WHY_NOT = {
    "timeout": "Nobody answered in time, so this was not allowed. It was not refused by a person.",
    "cancelled": "The turn was interrupted before anybody answered.",
    "deny": "Nobody is there to ask, so this was not allowed.",
}


def _unanswered(outcome: Outcome) -> PermissionResultDeny:
    # A plain denial would send the agent back to the model before the interrupt that follows reaches it.
    return PermissionResultDeny(message=_WHY_NOT[outcome], interrupt=outcome == "cancelled")


def _permission(reply: Approval | Unanswered, context: ToolPermissionContext) -> Permission:
    if isinstance(reply, Unanswered):
        return _unanswered(reply.outcome)
    if reply.decision == "deny":
        return PermissionResultDeny(message=reply.message or "The person in charge refused this.")
    updates = _remembered(context.suggestions) if reply.remember else None
    return PermissionResultAllow(updated_input=reply.updated_input, updated_permissions=updates)


def _remembered(suggestions: list[PermissionUpdate]) -> list[PermissionUpdate]:
    """Return the narrowest of the suggestions: a rule, and a change of mode only where there is no rule."""
    rules = [update for update in suggestions if update.type != "setMode"]
    return [_for_session(update) for update in rules or suggestions]


def _for_session(update: PermissionUpdate) -> PermissionUpdate:
    """Return a suggested rule bound to this session: what one person allows here is written nowhere."""
    return PermissionUpdate.from_dict({**update.to_dict(), "destination": "session"})
