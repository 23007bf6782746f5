"""The commands that people give a session, as they wait in the store for the session's owner. Pure.

A decision waits as the `Approval` or `Answer` that is written to the runner.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from agent_runner.contract.protocol import Answer, Approval


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    by: str | None = None
    """The name of the principal who asks."""


class PromptCommand(_Command, frozen=True, kw_only=True, tag="prompt"):
    """The next turn; ``traceparent`` is the caller's."""

    turn_id: str
    text: str
    traceparent: str | None = None
    tracestate: str = ""


class InterruptCommand(_Command, frozen=True, kw_only=True, tag="interrupt"):
    """End the current turn."""


class CloseCommand(_Command, frozen=True, kw_only=True, tag="close"):
    """End the session."""


class _OldDecision(msgspec.Struct):
    by: str | None = None


AnyCommand = PromptCommand | Approval | Answer | InterruptCommand | CloseCommand

_decoder = msgspec.json.Decoder(AnyCommand)
encode = msgspec.json.encode


def decode(data: bytes) -> AnyCommand:
    """Return the command that `encode` wrote; the store is ours, so anything else is a fault."""
    command = _decoder.decode(data)
    if isinstance(command, Approval | Answer) and command.decided_by is None:
        # Decisions that earlier versions stored have ``by`` in place of ``decided_by``.
        return replace(command, decided_by=msgspec.json.decode(data, type=_OldDecision).by)
    return command
