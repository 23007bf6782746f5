"""What the service itself says in a session's log: the runner's envelope, without a seq. Pure."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from agent_runner.contract.protocol import PROTOCOL_VERSION, ErrorType, to_json
from host_client.store.base import Root

CloseReason = Literal["closed", "inactive", "shutdown", "ended", "failed", "lost"]


class PromptData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody gave the agent a turn."""

    turn_id: str
    text: str
    sent_by: str | None = None


class SandboxData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sandbox is there and the runner was started; ``creation_ms`` is from the session's creation."""

    sandbox_id: str
    kind: str
    creation_ms: float


class AdoptedData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another process of the service has the session now; it goes on."""

    reason: str
    replica: str


class ClosedData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Always the last. ``lost``: the agent ended with the process that had it.

    ``estimated_usd`` is what a turn without a result cost, by its model requests at list price.
    """

    reason: CloseReason
    cost_usd: float
    estimated_usd: float = 0.0
    error_type: ErrorType | None = None
    message: str | None = None
    closed_by: str | None = None


class GapData(msgspec.Struct, frozen=True, kw_only=True):
    """Live only: the events with these numbers are no longer kept."""

    first: int
    last: int


class DroppedData(msgspec.Struct, frozen=True, kw_only=True):
    """Live only: the stream ends here; come back with this number."""

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
_EVENT_OF: dict[type[OwnData], type[OwnEvent]] = {
    PromptData: PromptEvent,
    SandboxData: SandboxEvent,
    AdoptedData: AdoptedEvent,
    ClosedData: ClosedEvent,
    GapData: GapEvent,
    DroppedData: DroppedEvent,
}


def own_event(data: OwnData, root: Root, ts: float) -> OwnEvent:
    """Put data into its envelope; it belongs to the session's root span."""
    kind = _EVENT_OF[type(data)]
    return kind(ts=ts, trace_id=root.trace_id, span_id=root.span_id, data=data)  # pyright: ignore[reportArgumentType]


def own_json(data: OwnData, root: Root, ts: float) -> bytes:
    """Return an event as its JSON, in one line."""
    return to_json(own_event(data, root, ts))


def is_closing(line: bytes) -> bool:
    """Whether an event's JSON is that of `ClosedEvent`, the last of a log; no event of a runner has its type."""
    return line.startswith(b'{"type":"closed",')
