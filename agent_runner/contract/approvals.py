"""Rules for approvals and questions that the runner and the host share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec

from .protocol import Answer, Approval, Decision, input_digest

_Suggestion = TypeVar("_Suggestion")


class PermissionRule(msgspec.Struct):
    """A rule of permissions in the SDK's form."""

    toolName: str  # noqa: N815  # the SDK's names
    ruleContent: str | None = None  # noqa: N815


class RulesUpdate(msgspec.Struct):
    """A change of rules."""

    rules: list[PermissionRule]
    behavior: str


class DirectoriesUpdate(msgspec.Struct):
    """A change of the directories that the agent may use."""

    directories: list[str]


class ModeUpdate(msgspec.Struct):
    """A change of the permission mode."""

    mode: str


NO_ONE = "runner:no-one-to-ask"
"""``decided_by`` of a denial that the runner makes because stdin has ended, so that no host can answer."""


def request_id_of(reply: Approval | Answer) -> str:
    """Return the id of the approval request or question that a reply answers."""
    return reply.approval_id if isinstance(reply, Approval) else reply.question_id


def contradiction_in(approval: Approval) -> str | None:
    """Return an error message if an approval contradicts itself, else None."""
    if approval.decision == "deny" and approval.updated_input is not None:
        return "a denial cannot carry an updated_input"
    if approval.decision == "deny" and approval.updated_permissions is not None:
        return "a denial cannot carry updated_permissions"
    if approval.decision == "allow" and approval.interrupt:
        return "only a denial can carry interrupt"
    if approval.remember and approval.updated_permissions is not None:
        return "remember and updated_permissions exclude each other"
    if not all(_is_update(each) for each in approval.updated_permissions or ()):
        return "updated_permissions are not in the SDK's form"
    return None


_FORMS_OF_UPDATES: dict[object, Any] = {
    **dict.fromkeys(("addRules", "replaceRules", "removeRules"), RulesUpdate),
    **dict.fromkeys(("addDirectories", "removeDirectories"), DirectoriesUpdate),
    "setMode": ModeUpdate,
}


def _is_update(update: dict[str, Any]) -> bool:
    """Return whether a change of permissions has a known type and the fields that the SDK requires of it."""
    try:
        msgspec.convert(update, _FORMS_OF_UPDATES[update.get("type")])
    except (LookupError, TypeError, msgspec.ValidationError):
        return False
    return True


def fault_of_approval(approval: Approval, input_sha256: str) -> str | None:
    """Return an error message if an approval does not answer a request whose input has this digest, else None."""
    if approval.input_sha256 not in (None, input_sha256):
        return "input_sha256 is not the digest of the requested input"
    return contradiction_in(approval)


def fault_of_reply(answer: Answer, questions: Sequence[Any]) -> str | None:
    """Return an error message if an answer, or a refusal to answer, does not fit the questions, else None."""
    if answer.refusal is not None:
        return "a refusal cannot carry answers" if answer.answers else None
    return "only a refusal can carry interrupt" if answer.interrupt else fault_of_answer(answer.answers, questions)


def fault_of_answer(answers: Mapping[str, Any], questions: Sequence[Any]) -> str | None:
    """Return an error message if answers do not fit the questions (`QuestionRequestData.questions`), else None."""
    texts = [str(cast("dict[str, Any]", each).get("question")) for each in questions if isinstance(each, dict)]
    unknown = next((key for key in answers if key not in texts), None)
    if not texts or (unknown is None and answers):
        return None
    problem = "no answer was given" if unknown is None else f"there is no question {unknown[:100]!r}"
    return f"{problem}: each key of answers must be the whole text of a question: {', '.join(map(repr, texts))[:1000]}"


def outcome_of(approval: Approval, input_sha256: str) -> Decision:
    """Return the decision that an approval makes on a request whose input has this digest."""
    if approval.decision == "deny" or approval.updated_input is None:
        return approval.decision
    return "allow" if input_digest(approval.updated_input) == input_sha256 else "allow_edited"


def remembered(suggestions: Sequence[_Suggestion], type_of: Callable[[_Suggestion], object]) -> list[_Suggestion]:
    """Return the suggestions that ``remember`` accepts; a permission mode, which allows more, only without a rule.

    A directory alone would not do: Claude Code would ask again for the next edit in it.
    """
    has_rules = any(type_of(each) == "addRules" for each in suggestions)
    return [each for each in suggestions if not (has_rules and type_of(each) == "setMode")]
