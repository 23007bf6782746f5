"""Commands to a session, as they are queued in the store for the session's owner. Pure.

A decision is queued as the `Approval` or `Answer` that the runner gets, and so is a control command.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from agent_runner.contract.protocol import Answer, AnyControl, Approval

from ._events import PromptAttachment


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    by: str | None = None
    """The name of the caller."""


class PromptCommand(_Command, frozen=True, kw_only=True, tag="prompt"):
    """Start a turn after the current one; ``traceparent`` is that of the caller."""

    turn_id: str
    text: str
    attachments: tuple[PromptAttachment, ...] = ()
    traceparent: str | None = None
    tracestate: str = ""


class InterruptCommand(_Command, frozen=True, kw_only=True, tag="interrupt"):
    """End the current turn."""


class CloseCommand(_Command, frozen=True, kw_only=True, tag="close"):
    """End the session."""


class _OldDecision(msgspec.Struct):
    by: str | None = None


AnyCommand = PromptCommand | Approval | Answer | InterruptCommand | CloseCommand | AnyControl

_decoder = msgspec.json.Decoder(AnyCommand)
encode = msgspec.json.encode


def decode(data: bytes) -> AnyCommand | None:
    """Return a command that `encode` encoded; None if only a later version knows it, as in a rolling update."""
    try:
        command = _decoder.decode(data)
    except msgspec.ValidationError:
        return None
    if isinstance(command, Approval | Answer) and command.decided_by is None:
        # Decisions that earlier versions stored have the field ``by`` instead of ``decided_by``.
        return replace(command, decided_by=msgspec.json.decode(data, type=_OldDecision).by)
    return command
