"""Events that the service itself adds to a session's log, in the format of the runner's, without a seq. Pure."""

from __future__ import annotations

from typing import Literal, get_args, get_type_hints

import msgspec

from agent_runner.contract.attachments import AttachmentView
from agent_runner.contract.protocol import PROTOCOL_VERSION, ErrorType, to_json
from host_client.store.base import Root

CloseReason = Literal["closed", "inactive", "shutdown", "ended", "failed", "lost"]


class PromptAttachment(AttachmentView, frozen=True, kw_only=True, omit_defaults=True):
    """An attachment of a prompt, and the id under which a session's readers get its content."""

    id: str


class PromptData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A caller sent the agent a turn. With ``error`` it did not reach the agent, and does not begin."""

    turn_id: str
    text: str
    sent_by: str | None = None
    attachments: tuple[PromptAttachment, ...] = ()
    error: str | None = None


class SandboxData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sandbox was created and the runner started, ``creation_ms`` after the session's creation."""

    sandbox_id: str
    kind: str
    creation_ms: float


class AdoptedData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another replica owns the session now, and the session goes on."""

    reason: str
    replica: str


class ClosedData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The session ended; always its last event. ``lost``: the agent ended together with its process of the service.

    ``estimated_usd`` is the cost of a turn without a result: its model requests at list price.
    """

    reason: CloseReason
    cost_usd: float
    estimated_usd: float = 0.0
    error_type: ErrorType | None = None
    message: str | None = None
    closed_by: str | None = None


class GapData(msgspec.Struct, frozen=True, kw_only=True):
    """Live only: the events with these numbers were deleted from the log."""

    first: int
    last: int


class DroppedData(msgspec.Struct, frozen=True, kw_only=True):
    """Live only: the stream ends here; the reader is to reconnect with the number ``after``."""

    reason: str
    after: int


OwnData = PromptData | SandboxData | AdoptedData | ClosedData | GapData | DroppedData


class _Own(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    ts: float
    trace_id: str
    span_id: str
    v: int = PROTOCOL_VERSION


class PromptEvent(_Own, frozen=True, kw_only=True, tag="prompt"):
    data: PromptData


class SandboxEvent(_Own, frozen=True, kw_only=True, tag="sandbox"):
    data: SandboxData


class AdoptedEvent(_Own, frozen=True, kw_only=True, tag="adopted"):
    data: AdoptedData


class ClosedEvent(_Own, frozen=True, kw_only=True, tag="closed"):
    data: ClosedData


class GapEvent(_Own, frozen=True, kw_only=True, tag="gap"):
    data: GapData


class DroppedEvent(_Own, frozen=True, kw_only=True, tag="dropped"):
    data: DroppedData


OwnEvent = PromptEvent | SandboxEvent | AdoptedEvent | ClosedEvent | GapEvent | DroppedEvent
OWN_TYPES: dict[str, type[OwnEvent]] = {str(kind.__struct_config__.tag): kind for kind in get_args(OwnEvent)}
_EVENT_OF: dict[type[OwnData], type[OwnEvent]] = {get_type_hints(kind)["data"]: kind for kind in get_args(OwnEvent)}


def own_event(data: OwnData, root: Root, ts: float) -> OwnEvent:
    """Return an event of the service with this data and time, in the session's root span."""
    kind = _EVENT_OF[type(data)]
    return kind(ts=ts, trace_id=root.trace_id, span_id=root.span_id, data=data)  # pyright: ignore[reportArgumentType]


def own_json(data: OwnData, root: Root, ts: float) -> bytes:
    """Return an event of the service as one line of JSON."""
    return to_json(own_event(data, root, ts))


def is_closing(line: bytes) -> bool:
    """Return whether an event's JSON is a `ClosedEvent`, the last of a log; a runner has no event of this type."""
    return line.startswith(b'{"type":"closed",')
