"""What the service keeps: sessions, their logs, commands, decisions, quotas and tokens. One protocol, two stores.

A session's log is numbered from 1 without holes; its owner (one service process) is the only one who appends. Any
process may read, push commands and decide. All times are seconds since the epoch, costs US dollars.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from host_client.telemetry import Root

_logger = logging.getLogger(__name__)

Status = Literal["starting", "running", "needs_you", "idle", "closed", "failed"]
Role = Literal["viewer", "approver", "operator"]


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes of a session. ``request`` is what its creator asked for."""

    id: str
    tenant_id: str
    created_at: float
    created_by: str
    title: str
    root: Root
    request: dict[str, Any]


class WaitingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An approval or question that waits for a person; ``event_id`` is the number of the event that asks."""

    id: str
    kind: Literal["approval", "question"]
    tool_name: str
    expires_at: float
    input_sha256: str | None = None
    event_id: int = 0


class SandboxRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which sandbox a session has."""

    id: str
    kind: str


class SessionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changes of a session; written with the events that change it, in one step.

    ``whereabouts`` is what another process needs to take the session over; ``seen_seq`` is the runner's last event in
    the log, ``commands_logged`` the position of the last command whose event is in the log, ``commands_done`` of the
    last that its owner has carried out.
    """

    status: Status = "starting"
    started: bool = False
    """The agent is up."""
    closing: bool = False
    """It is being closed, and takes nothing more."""
    busy: bool = False
    """A turn is under way, or has been asked for."""
    updated_at: float = 0.0
    closed_at: float | None = None
    close_reason: str | None = None
    error_type: str | None = None
    last_event_id: int = 0
    seen_seq: int = 0
    commands_logged: int = 0
    commands_done: int = 0
    turns: int = 0
    cost_usd: float = 0.0
    model: str | None = None
    claude_session_id: str | None = None
    sandbox: SandboxRef | None = None
    whereabouts: dict[str, Any] | None = None
    waiting: tuple[WaitingRequest, ...] = ()

    @property
    def is_closed(self) -> bool:
        return self.status in ("closed", "failed")

    @property
    def takes_more(self) -> bool:
        """Whether turns and decisions are still carried out."""
        return not self.closing and not self.is_closed


class StoredSession(NamedTuple):
    record: SessionRecord
    state: SessionState


class LogEntry(NamedTuple):
    """One event of a log: its number and its JSON, without a newline."""

    id: int
    data: bytes


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How a request was decided; the first one wins.

    ``decision`` is allow, allow_edited, deny, answered, timeout or cancelled.
    """

    request_id: str
    decision: str
    decided_by: str | None
    decided_at: float


class Queued(NamedTuple):
    """A command for a session's owner. ``position`` grows from 1; ``data`` is JSON."""

    position: int
    data: bytes


class Note(Enum):
    """What a subscriber is told of a session."""

    EVENTS = "events"
    """Its log has grown, or may have."""
    COMMANDS = "commands"
    """A command was pushed, or may have been."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token as kept: never itself, only its SHA-256."""

    id: str
    digest: str
    name: str
    tenant_id: str
    role: Role
    created_at: float
    expires_at: float | None = None


class IdempotentAnswer(NamedTuple):
    """What was answered to an `Idempotency-Key`: the request's digest; None while it is being carried out."""

    digest: str
    answer: bytes | None


def log_left_out(session_id: str, kept: int) -> None:
    """Say, once for a session, that it has more spans than are kept."""
    _logger.warning("session %s: spans of its sandbox are not kept: there are %d bytes already", session_id, kept)


@dataclass(frozen=True)
class Additions:
    """What is written with events, in the same step."""

    spans: Sequence[bytes] = ()
    """What is kept for the session's trace, and not in the log: the host's own, which begin with `OWN_SPANS`, and of
    what a sandbox sent, as it came, the first `MAX_SPANS_BYTES` of a session. What is left out is logged."""
    decisions: Sequence[Decision] = ()
    """What the runner says of a request: it counts, whatever was recorded before."""
    cost_usd: float = 0.0
    """Added to the tenant's day (UTC)."""
    day: str = ""
    """`YYYY-MM-DD`."""


class StoreError(Exception):
    """The store cannot be used; the message says why and what to do."""


class NotOwnerError(StoreError):
    """Another process owns the session now, or it is gone: write no more."""


class UnknownSessionError(StoreError):
    """There is no such session (any more)."""


class TooManyError(StoreError):
    """The tenant has as many open sessions as it may."""


class BadCursorError(ValueError):
    """A cursor that no page ended with."""


class TokenStore(Protocol):
    """Tokens alone: these may be looked after beside a service that runs."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def add_token(self, token: Token) -> None: ...
    async def find_token(self, digest: str) -> Token | None: ...
    async def tokens(self) -> list[Token]: ...
    async def remove_token(self, token_id: str) -> bool: ...


class Store(TokenStore, Protocol):
    """Safe for use by many tasks of one event loop. Every method may raise `StoreError`."""

    shared: bool
    """Whether other processes use it too (so that sessions may be owned elsewhere)."""
    lease_seconds: float
    """An owner that has not renewed for so long is taken for dead."""

    async def ping(self) -> None: ...

    # sessions
    async def create(
        self, stored: StoredSession, owner: str, commands: Sequence[bytes], *, most_open: int | None
    ) -> None:
        """Keep a new session of this owner together with its first commands; raise `TooManyError`."""
        ...

    async def get(self, session_id: str) -> StoredSession | None: ...
    async def page(
        self, tenant_id: str | None, *, status: Status | None, limit: int, before: str | None
    ) -> tuple[list[StoredSession], str | None]:
        """Return sessions, newest first, and the cursor of the next page. ``tenant_id`` None: of all tenants.

        Raise `BadCursorError` for a ``before`` that is none.
        """
        ...

    async def open_sessions(self, tenant_id: str) -> list[StoredSession]:
        """Return a tenant's sessions that are not closed, oldest first."""
        ...

    async def unfinished(self) -> list[str]:
        """Return the ids of sessions that are not closed and that no living process owns."""
        ...

    # ownership
    async def acquire(self, session_id: str, owner: str) -> bool:
        """Become the owner unless a living process is; False also where there is no such session."""
        ...

    async def renew(self, session_ids: Sequence[str], owner: str) -> list[str]:
        """Stay the owner (called every `lease_seconds` / 3); return those that are lost."""
        ...

    async def release(self, session_id: str, owner: str) -> None: ...

    # the log
    async def append(
        self,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions = ...,
    ) -> None:
        """Write events numbered up to ``state.last_event_id``, the state, and all else, at once.

        Note EVENTS if there are any, and forget the commands up to ``state.commands_done``. Raise `NotOwnerError` if
        the log has other numbers, or another owner. After another `StoreError` they may have been kept or not: the same
        events and state may be written again, and are kept once. (What comes without events may be kept twice.)
        """
        ...

    def before_append(self, call: Callable[[], None]) -> None:
        """Call this, in the event loop, when something is to be appended: what comes until then goes with it."""
        ...

    def append_soon(
        self,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Begin to do what `append` does; ``done`` is called, later, with None or with what `append` raises."""
        ...

    async def read(
        self, session_id: str, after: int, *, limit: int = 1000, max_bytes: int = 4 * 1024 * 1024
    ) -> list[LogEntry]:
        """Return the events after a number, oldest first, at least one if there is one."""
        ...

    async def oldest(self, session_id: str) -> int:
        """Return the number of the oldest event that is kept; 1 + the last one if none is."""
        ...

    def spans(self, session_id: str) -> AsyncIterator[bytes]: ...

    # what is passed on
    def subscribe(
        self, session_id: str, *, only: Note | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Note | bytes]]:
        """Yield notes, and live events (bytes) that others `publish`; subscribed once entered.

        ``only``: nothing but this note.
        After a lost connection both notes come again, as something may have been missed. A slow subscriber misses
        the oldest live events, never a note. It ends when the store is closed.
        """
        ...

    async def publish(self, session_id: str, data: bytes) -> None:
        """Pass a live event on to subscribers; it is not kept."""
        ...

    async def push(self, session_id: str, data: bytes) -> int:
        """Queue a command for the owner and note COMMANDS; return its position. Raise `UnknownSessionError`."""
        ...

    async def commands(self, session_id: str, after: int) -> list[Queued]:
        """Return the commands after a position that are not forgotten, in order."""
        ...

    async def decide(self, session_id: str, decision: Decision, command: bytes | None) -> Decision | None:
        """Record a decision and queue its command in one step; return None, or the decision that came first.

        Raise `UnknownSessionError`.
        """
        ...

    async def decision(self, session_id: str, request_id: str) -> Decision | None: ...

    # limits
    async def reserve(self, tenant_id: str, key: str, digest: str, seconds: float) -> IdempotentAnswer | None:
        """Reserve an idempotency key; return what is there already."""
        ...

    async def answer(self, tenant_id: str, key: str, digest: str, answer: bytes | None, seconds: float) -> None:
        """Remember the answer to a reserved key; None frees the key."""
        ...

    async def count(self, tenant_id: str, what: str, window: float) -> int:
        """Count one in this fixed window (seconds); return how many there are in it now."""
        ...

    async def spent(self, tenant_id: str, day: str) -> float: ...

    # retention
    async def expire(self, before: float) -> int:
        """Forget sessions that were closed before a time, with all that belongs to them; return how many."""
        ...

    async def trim(self, session_id: str, keep: int) -> None:
        """Forget all but the last so many events of a log."""
        ...


OWN_SPANS = b"o"
"""What the host's own spans begin with."""

MAX_SPANS_BYTES = 64 * 1024 * 1024
"""Of a session, beside the host's own spans."""

LEASE_SECONDS = 15.0
"""How long an owner may be silent where nothing else was asked for."""

NANO = 1_000_000_000
"""A US dollar in the unit in which stores add up costs: integers add up exactly."""

SPENT_DAYS = 40
"""How long a tenant's day is remembered."""


def settle(future: asyncio.Future[Any], error: Exception | None, result: Any = None) -> None:
    """Let who waits for a future go on, unless it was cancelled; the ``done`` of `Store.append_soon`."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def error_of(task: asyncio.Task[None]) -> Exception | None:
    """Return how a task that appends has ended, as ``done`` is told."""
    if task.cancelled():
        return StoreError("the program ends")
    error = task.exception()
    return error if error is None or isinstance(error, Exception) else StoreError(str(error))
