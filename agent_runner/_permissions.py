"""Ask a person to approve tool calls and to answer questions, through the SDK's callback ``can_use_tool``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from claude_agent_sdk import (
    PermissionResultAllow,
    PermissionResultDeny,
    PermissionUpdate,
    ToolPermissionContext,
)

from ._events import Events
from ._requests import Outcome, PendingRequests, RefusedError, Unanswered
from ._state import MAX_INPUT, ToolCall
from ._translate import Translator
from .contract import genai
from .contract.approvals import contradiction_in, fault_of_approval, fault_of_reply, outcome_of, remembered
from .contract.protocol import (
    Answer,
    Approval,
    ApprovalRequestData,
    ApprovalResolvedData,
    LogData,
    QuestionRequestData,
    QuestionResolvedData,
    input_digest,
    to_json,
)
from .contract.spans import Span

QUESTION_TOOL = "AskUserQuestion"

PersonReply = TypeVar("PersonReply", Approval, Answer)

Permission = PermissionResultAllow | PermissionResultDeny


class Permissions:
    """Emits requests for approvals and answers, waits for the replies, and returns them to the SDK."""

    def __init__(self, translator: Translator, events: Events, timeout: float) -> None:
        self._translator = translator
        self._events = events
        self._timeout = timeout
        self._approvals: PendingRequests[Approval] = PendingRequests("approval")
        self._questions: PendingRequests[Answer] = PendingRequests("question")

    # -- from the host ----------------------------------------------------------------------------

    def answer(self, reply: Approval | Answer) -> None:
        """Deliver a person's reply; raise `RefusedError` if no request waits for it or it does not fit the request."""
        if isinstance(reply, Answer):
            self._questions.answer(reply.question_id, reply)
        elif (fault := contradiction_in(reply)) is not None:
            raise RefusedError(fault)
        else:
            self._approvals.answer(reply.approval_id, reply)

    def cancel_all(self) -> None:
        """End all waits as cancelled, as the turn was interrupted."""
        self._approvals.cancel_all()
        self._questions.cancel_all()

    def close(self) -> None:
        """Deny all requests, as the host is gone."""
        self._approvals.close()
        self._questions.close()

    # -- from the agent ---------------------------------------------------------------------------

    async def can_use_tool(self, name: str, tool_input: dict[str, Any], context: ToolPermissionContext) -> Permission:
        """Return the decision on a tool call (the SDK's callback)."""
        tool_id = context.tool_use_id or ""
        # The SDK may call this before it yields the message with the call. Waiting keeps the events in order.
        await self._translator.calls.wait_for(tool_id)
        parent = self._translator.calls.caller_of(context.agent_id)
        tool = self._translator.calls.begin(tool_id, name, tool_input, parent)
        turn = self._translator.turns.current
        if turn is not None and turn.interrupted:
            tool.refusal = "cancelled"  # an interrupted turn asks for no approval
            return _unanswered("cancelled")
        if name == QUESTION_TOOL:
            return await self._ask(tool, tool_id, tool_input)
        if len(to_json(tool_input)) > MAX_INPUT:
            tool.refusal, tool.denied_by = "deny", "runner"
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
            agent_id=context.agent_id,
            blocked_path=context.blocked_path,
            decision_reason=context.decision_reason,
            title=context.title,
            display_name=context.display_name,
            description=context.description,
        )

        def resolved(reply: Approval | Unanswered, wait_ms: float) -> ApprovalResolvedData:
            ids: dict[str, Any] = {"approval_id": key, "tool_use_id": tool_id, "decided_by": reply.decided_by}
            if isinstance(reply, Unanswered):
                return ApprovalResolvedData(**ids, decision=reply.outcome, wait_ms=wait_ms)
            decision = outcome_of(reply, digest)
            if decision == "deny":
                return ApprovalResolvedData(**ids, decision=decision, wait_ms=wait_ms)
            edit = reply.updated_input if decision == "allow_edited" else None
            return ApprovalResolvedData(
                **ids,
                decision=decision,
                wait_ms=wait_ms,
                updated_input=edit,
                input_sha256=digest if edit is None else input_digest(edit),
                remembered=bool(reply.updated_permissions or (reply.remember and context.suggestions)),
            )

        span = self._open_span(tool, tool_id, key)
        reply = await self._reply(self._approvals, key, request, resolved, tool, span)
        if isinstance(reply, Approval) and reply.remember and not context.suggestions:
            text = f"{tool.name} is allowed once and not remembered: Claude Code suggests no rule for this call"
            self._events.emit(LogData(stream="runner", text=text), tool.span)
        self._interrupt_if(reply)
        return _permission(reply, context)

    def _interrupt_if(self, reply: Approval | Answer | Unanswered) -> None:
        """Note that the turn is interrupted, if a denial says so."""
        turn = self._translator.turns.current
        if turn is not None and not isinstance(reply, Unanswered) and reply.interrupt:
            turn.interrupted = True

    async def _ask(self, tool: ToolCall, tool_id: str, tool_input: dict[str, Any]) -> Permission:
        questions: list[Any] = list(tool_input.get("questions") or ())
        key = self._questions.open(lambda reply: fault_of_reply(reply, questions))
        request = QuestionRequestData(
            question_id=key, tool_use_id=tool_id, questions=questions, expires_at=self._deadline()
        )

        def resolved(reply: Answer | Unanswered, wait_ms: float) -> QuestionResolvedData:
            answers, decision = None, "deny"
            if isinstance(reply, Unanswered):
                decision = reply.outcome
            elif reply.refusal is None:
                answers, decision = reply.answers, "answered"
            return QuestionResolvedData(
                question_id=key, answers=answers, decision=decision, decided_by=reply.decided_by, wait_ms=wait_ms
            )

        span = self._open_span(tool, tool_id, key)
        reply = await self._reply(self._questions, key, request, resolved, tool, span)
        if isinstance(reply, Unanswered):
            return _unanswered(reply.outcome)
        if reply.refusal is not None:
            self._interrupt_if(reply)
            return PermissionResultDeny(message=reply.refusal, interrupt=reply.interrupt)
        return PermissionResultAllow(updated_input={**tool_input, "answers": reply.answers})

    def _deadline(self) -> float:
        return round(time.time() + self._timeout, 3)

    def _open_span(self, tool: ToolCall, tool_id: str, key: str) -> Span:
        span = self._translator.spans.open_child("agent.approval", tool.span, genai.approval(key, tool_id, tool.name))
        tool.begun = tool.begun or span.start
        return span

    async def _reply(
        self,
        requests: PendingRequests[PersonReply],
        key: str,
        request: ApprovalRequestData | QuestionRequestData,
        resolved: Callable[[PersonReply | Unanswered, float], ApprovalResolvedData | QuestionResolvedData],
        tool: ToolCall,
        span: Span,
    ) -> PersonReply | Unanswered:
        """Emit a request, wait for the reply, emit the event that ``resolved`` makes of it, and end the wait's span."""
        self._events.emit(request, span, opens=True)
        reply: PersonReply | Unanswered = Unanswered("cancelled")
        try:
            reply = await requests.wait(key, self._timeout)
        finally:
            # This also runs when the CLI withdraws the request, which cancels this task.
            now = self._translator.spans.clock()
            wait_ms = round((now - span.start) / 1e6, 3)
            data = resolved(reply, wait_ms)
            tool.wait_ms += wait_ms
            if data.decision in ("deny", "timeout", "cancelled"):
                tool.refusal = data.decision
                tool.denied_by = "approval" if data.decision == "deny" else None
            digest = data.input_sha256 if isinstance(data, ApprovalResolvedData) else None
            genai.set_approval(span, data.decision, reply.decided_by, wait_ms, digest)
            self._translator.spans.close(span, end=now)
            self._events.emit(data, span)
        return reply


_DENIALS: dict[Outcome, str] = {
    "timeout": "Nobody answered in time, so this was not allowed. It was not refused by a person.",
    "cancelled": "The turn was interrupted before anybody answered.",
    "deny": "Nobody is there to ask, so this was not allowed.",
}


def _unanswered(outcome: Outcome) -> PermissionResultDeny:
    # Without ``interrupt`` the agent would send the denial to the model before the interrupt that follows stops it.
    return PermissionResultDeny(message=_DENIALS[outcome], interrupt=outcome == "cancelled")


def _permission(reply: Approval | Unanswered, context: ToolPermissionContext) -> Permission:
    if isinstance(reply, Unanswered):
        return _unanswered(reply.outcome)
    if reply.decision == "deny":
        message = reply.message or "The person in charge refused this."
        return PermissionResultDeny(message=message, interrupt=reply.interrupt)
    accepted = remembered(context.suggestions, lambda update: update.type)
    updates = [_for_session(update) for update in accepted] if reply.remember else _updates_in(reply)
    return PermissionResultAllow(updated_input=reply.updated_input, updated_permissions=updates)


def _updates_in(reply: Approval) -> list[PermissionUpdate] | None:
    if reply.updated_permissions is None:
        return None
    return [PermissionUpdate.from_dict(each) for each in reply.updated_permissions]


def _for_session(update: PermissionUpdate) -> PermissionUpdate:
    """Return a suggestion limited to this session, so that the CLI writes it to no settings file."""
    return PermissionUpdate.from_dict({**update.to_dict(), "destination": "session"})
