"""What people ask of a session, as it waits in the store for the session's owner. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    by: str | None = None
    """Who asks: the principal's name."""


class PromptCommand(_Command, frozen=True, kw_only=True, tag="prompt"):
    """The next turn; ``traceparent`` is the caller's."""

    turn_id: str
    text: str
    traceparent: str | None = None
    tracestate: str = ""


class ApprovalCommand(_Command, frozen=True, kw_only=True, tag="approval"):
    """A decision that has been recorded already."""

    approval_id: str
    decision: Literal["allow", "deny"]
    message: str | None = None
    updated_input: dict[str, Any] | None = None
    remember: bool = False


class AnswerCommand(_Command, frozen=True, kw_only=True, tag="answer"):
    """The answers to a question, recorded already."""

    question_id: str
    answers: dict[str, Any]


class InterruptCommand(_Command, frozen=True, kw_only=True, tag="interrupt"):
    """End the current turn."""


class CloseCommand(_Command, frozen=True, kw_only=True, tag="close"):
    """End the session."""


AnyCommand = PromptCommand | ApprovalCommand | AnswerCommand | InterruptCommand | CloseCommand

_decoder = msgspec.json.Decoder(AnyCommand)
encode = msgspec.json.encode


def decode(data: bytes) -> AnyCommand:
    """Read what `encode` wrote; the store is ours, so anything else is a fault."""
    return _decoder.decode(data)
