"""Replies to approval and question requests by a policy or by the caller's function. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from agent_runner.contract.protocol import Answer, Approval, ApprovalRequest, QuestionRequest

from .options import ApprovalPolicy

Approver = Callable[[ApprovalRequest], Awaitable[bool | Approval]]
"""Decides an approval request: True, False, or a whole `Approval`."""


class Answerer(Protocol):
    """An approver that also answers questions."""

    async def answer(self, request: QuestionRequest) -> Answer:
        """Return the answer to a question request."""
        ...


def reply_by_policy(policy: ApprovalPolicy, request: ApprovalRequest | QuestionRequest) -> Approval | Answer | None:
    """Return a policy's reply to a request; None for ``ask``, which leaves the reply to the caller."""
    if policy == "ask":
        return None
    by = f"policy:{policy}"
    if isinstance(request, ApprovalRequest):
        return verdict_on(request, policy == "auto", by)
    answers = {str(each.get("question")): _default_answer(each, policy) for each in request.data.questions}
    return Answer(question_id=request.data.question_id, answers=answers, decided_by=by)


def answerer_of(approver: Approver) -> Answerer | None:
    """Return the approver if it answers questions too, else None."""
    return cast("Answerer", approver) if callable(getattr(approver, "answer", None)) else None


async def reply_by_approver(approver: Approver, request: ApprovalRequest) -> Approval:
    """Return the decision of the caller's function; its exceptions pass through."""
    verdict = await approver(request)
    return verdict if isinstance(verdict, Approval) else verdict_on(request, verdict, "approver")


def verdict_on(request: ApprovalRequest, allowed: bool, by: str) -> Approval:
    """Return the decision that allows or denies a request."""
    key = request.data.approval_id
    if allowed:
        return Approval(approval_id=key, decision="allow", decided_by=by)
    return Approval(approval_id=key, decision="deny", message="Denied by policy.", decided_by=by)


def _default_answer(question: Mapping[str, Any], policy: ApprovalPolicy) -> str:
    options = question.get("options") or ()
    if policy == "auto" and options:
        return str(options[0].get("label"))
    return "Nobody is here to answer."
