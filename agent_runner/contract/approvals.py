"""Rules of approvals and questions that runner and host share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .protocol import Answer, Approval, Decision, input_digest

NO_ONE = "runner:no-one-to-ask"
"""``decided_by`` of a denial for which nobody was asked: stdin has ended, so the host is gone."""


def request_id_of(reply: Approval | Answer) -> str:
    """Return the id of the request that a reply is for."""
    return reply.approval_id if isinstance(reply, Approval) else reply.question_id


def contradiction_in(approval: Approval) -> str | None:
    """Return why an approval cannot be the reply to any request; None if it can."""
    if approval.decision == "deny" and approval.updated_input is not None:
        return "a denial cannot carry an updated_input"
    return None


def fault_of_approval(approval: Approval, input_sha256: str) -> str | None:
    """Return why an approval is not a reply to a request for the input with this digest; None if it is one."""
    if approval.input_sha256 not in (None, input_sha256):
        return "input_sha256 is not that of the input in question"
    return contradiction_in(approval)


def fault_of_answer(answers: Mapping[str, Any], questions: Sequence[Any]) -> str | None:
    """Return why answers are not for these questions (`QuestionRequestData.questions`); None if they are."""
    texts = [str(cast("dict[str, Any]", each).get("question")) for each in questions if isinstance(each, dict)]
    strange = next((key for key in answers if key not in texts), None)
    if not texts or (strange is None and answers):
        return None
    wrong = "there is no answer" if strange is None else f"nobody asked {strange[:100]!r}"
    return (
        f"{wrong}: give answers by the whole text of a question, which is one of {', '.join(map(repr, texts))[:1000]}"
    )


def outcome_of(approval: Approval, input_sha256: str) -> Decision:
    """Return how an approval decides a request for the input with this digest."""
    if approval.decision == "deny" or approval.updated_input is None:
        return approval.decision
    return "allow" if input_digest(approval.updated_input) == input_sha256 else "allow_edited"
