"""Rules of approvals and questions that runner and host share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .protocol import Approval

NO_ONE = "runner:no-one-to-ask"
"""``decided_by`` when stdin had ended: the host is gone, so nobody can allow anything."""


def fault_of_approval(approval: Approval, input_sha256: str) -> str | None:
    """Say why an approval is not one of the input with this digest; None where it is."""
    if approval.input_sha256 in (None, input_sha256):
        return None
    return "input_sha256 is not that of the input in question"


def fault_of_answer(answers: Mapping[str, Any], questions: Sequence[Any]) -> str | None:
    """Say why answers are none to these questions (`QuestionRequestData.questions`); None where they are."""
    texts = [str(cast("dict[str, Any]", each).get("question")) for each in questions if isinstance(each, dict)]
    strange = next((key for key in answers if key not in texts), None)
    if not texts or (strange is None and answers):
        return None
    wrong = "there is no answer" if strange is None else f"nobody asked {strange[:100]!r}"
    return (
        f"{wrong}: give answers by the whole text of a question, which is one of {', '.join(map(repr, texts))[:1000]}"
    )
