"""The protocol of the service's two stores, and their records: sessions with their logs, files, quotas, tokens.

A session's log is numbered from 1 without holes. Only the session's owner, one process of the service, appends to it;
any process may read, push commands and decide. All times are seconds since the epoch, all costs US dollars.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
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
    """The part of a session that never changes. ``request`` holds the fields of its creator's request."""

    id: str
    tenant_id: str
    created_at: float
    created_by: str
    title: str
    root: Root
    request: dict[str, Any]


class WaitingRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An approval or question that waits for a person; ``event_id`` is the number of the event that requests it."""

    id: str
    kind: Literal["approval", "question"]
    tool_name: str
    expires_at: float
    input_sha256: str | None = None
    event_id: int = 0


class SandboxRef(msgspec.Struct, frozen=True, kw_only=True):
    """The id and kind of a session's sandbox."""

    id: str
    kind: str


class SessionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a session that changes; written together with the events that change it.

    ``whereabouts`` is the data with which another process can take the session over. ``seen_seq`` is the seq of the
    runner's last event in the log, ``commands_logged`` the position of the last command whose event is in the log, and
    ``commands_done`` the position of the last command that the owner has carried out.
    """

    status: Status = "starting"
    started: bool = False
    """The agent has started."""
    closing: bool = False
    """The session is being closed and accepts no more turns and decisions."""
    busy: bool = False
    """A turn is running or has been requested."""
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
    background: tuple[str, ...] = ()
    """Ids of commands and subagents that run in the background of turns."""

    @property
    def is_closed(self) -> bool:
        return self.status in ("closed", "failed")

    @property
    def takes_more(self) -> bool:
        """Return whether the session still accepts turns and decisions."""
        return not self.closing and not self.is_closed


class StoredSession(NamedTuple):
    record: SessionRecord
    state: SessionState


class LogEntry(NamedTuple):
    """One event of a log: its number and its JSON, without a newline."""

    id: int
    data: bytes


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The decision on a request; only the first decision on a request counts.

    ``decision`` is allow, allow_edited, deny, answered, timeout or cancelled.
    """

    request_id: str
    decision: str
    decided_by: str | None
    decided_at: float


class Queued(NamedTuple):
    """A command that waits for a session's owner: its position, counted from 1, and its JSON."""

    position: int
    data: bytes


class Note(Enum):
    """A notification to the subscribers of a session."""

    EVENTS = "events"
    """The log has grown, or may have."""
    COMMANDS = "commands"
    """A command was pushed, or may have been."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a tenant uploaded, or an attachment of a prompt, with its content."""

    data: bytes
    media_type: str
    name: str | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token as it is stored: its SHA-256 in place of the token itself."""

    id: str
    digest: str
    name: str
    tenant_id: str
    role: Role
    created_at: float
    expires_at: float | None = None


class IdempotentAnswer(NamedTuple):
    """The digest of the first request with an `Idempotency-Key`, and its answer; None while it is carried out."""

    digest: str
    answer: bytes | None


def log_left_out(session_id: str, kept: int) -> None:
    """Log, once for a session, that further spans of its sandbox are not stored."""
    _logger.warning(
        "session %s: further spans of its sandbox are not stored; %d bytes of them are already", session_id, kept
    )


@dataclass(frozen=True)
class Additions:
    """Data written together with events, in the same transaction."""

    spans: Sequence[bytes] = ()
    """Serialized spans for the session's trace. All that begin with `OWN_SPANS`, the host's own, are stored; of the
    others the first `MAX_SPANS_BYTES` of a session are, and it is logged if there are more."""
    decisions: Sequence[Decision] = ()
    """Decisions as the runner reports them; they replace those recorded before."""
    cost_usd: float = 0.0
    """US dollars to add to the tenant's spending on ``day``."""
    day: str = ""
    """The day in UTC as `YYYY-MM-DD`."""


NO_ADDITIONS = Additions()


class StoreError(Exception):
    """The store cannot be used; the message gives the reason and what to do."""


class NotOwnerError(StoreError):
    """Another process owns the session now, or the session was deleted; the caller must write no more to it."""


class UnknownSessionError(StoreError):
    """The session does not exist, or no longer."""


class TooManyError(StoreError):
    """The tenant already has as many open sessions as it may."""

    def __init__(self, most_open: int) -> None:
        super().__init__(f"the tenant has {most_open} open sessions, as many as it may: close one first")


class FilesFullError(StoreError):
    """The tenant's stored files take as much room as they may."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(
            f"the tenant's files and attachments may take {most_bytes} bytes, and this one would exceed them: "
            "wait until older ones expire"
        )


class BadCursorError(ValueError):
    """The cursor is not one that a page of sessions ended with."""


class TokenStore(Protocol):
    """A store of tokens, which may be managed while a service uses the same store."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def add_token(self, token: Token) -> None: ...
    async def find_token(self, digest: str) -> Token | None: ...
    async def tokens(self) -> list[Token]: ...
    async def remove_token(self, token_id: str) -> bool: ...


class Store(TokenStore, Protocol):
    """The store of a service, safe for use by many tasks of one event loop. Every method may raise `StoreError`."""

    shared: bool
    """Other processes use the store too, so they may own sessions."""
    lease_seconds: float
    """Seconds without a call of `renew` after which an owner is considered dead."""

    async def ping(self) -> None: ...

    # sessions
    async def create(
        self, stored: StoredSession, owner: str, commands: Sequence[bytes], *, most_open: int | None
    ) -> None:
        """Store a new session of this owner and its first commands; raise `TooManyError`."""
        ...

    async def get(self, session_id: str) -> StoredSession | None: ...
    async def page(
        self, tenant_id: str | None, *, status: Status | None, limit: int, before: str | None
    ) -> tuple[list[StoredSession], str | None]:
        """Return sessions of a tenant (None: of all tenants), newest first, and the cursor of the next page.

        Raise `BadCursorError` if ``before`` is not such a cursor.
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
        """Make the caller the owner unless a living process is; return False if one is, or there is no such session."""
        ...

    async def renew(self, session_ids: Sequence[str], owner: str) -> list[str]:
        """Extend the ownership of sessions (every `lease_seconds` / 3); return those that another process owns now."""
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
        """Write, in one transaction, events numbered up to ``state.last_event_id``, the state and the additions.

        Send the note EVENTS if there are events, and delete the commands up to ``state.commands_done``. Raise
        `NotOwnerError` if the log has other events at these numbers, or the session another owner. After any other
        `StoreError` the data may have been written or not; the caller may repeat the call, and events and state are
        then written once. (Additions without events may be written twice.) The store may combine the calls of several
        sessions into one commit.
        """
        ...

    async def read(
        self, session_id: str, after: int, *, limit: int = 1000, max_bytes: int = 4 * 1024 * 1024
    ) -> list[LogEntry]:
        """Return the events after a number, oldest first; at least one, if there is one, however large it is."""
        ...

    async def oldest(self, session_id: str) -> int:
        """Return the number of the oldest stored event, or 1 + the last number if none is stored."""
        ...

    def spans(self, session_id: str) -> AsyncIterator[bytes]:
        """Yield the stored spans of a session's trace, in the order of their writing."""
        ...

    # notes, live events, commands and decisions
    def subscribe(
        self, session_id: str, *, only: Note | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Note | bytes]]:
        """Yield a session's notes and published live events (bytes) from the moment the context is entered.

        With ``only``, yield that note and nothing else. After a lost connection both notes are sent again, as some may
        have been missed. A slow subscriber misses the oldest live events but no note. The iterator ends when the store
        is closed.
        """
        ...

    async def publish(self, session_id: str, data: bytes) -> None:
        """Send a live event to the session's subscribers, without storing it."""
        ...

    async def push(self, session_id: str, data: bytes) -> int:
        """Queue a command for the owner and send the note COMMANDS; return its position.

        Raise `UnknownSessionError`.
        """
        ...

    async def commands(self, session_id: str, after: int) -> list[Queued]:
        """Return the queued commands after a position, in order."""
        ...

    async def decide(self, session_id: str, decision: Decision, command: bytes | None) -> Decision | None:
        """Record the first decision on a request and queue its command, in one transaction; return None.

        If there was a decision before, change nothing and return that one. Raise `UnknownSessionError`.
        """
        ...

    async def decision(self, session_id: str, request_id: str) -> Decision | None: ...

    # files
    async def put_file(
        self, tenant_id: str, file_id: str, file: StoredFile, seconds: float, *, most_bytes: int | None
    ) -> None:
        """Store a tenant's file for some time, in place of one with this id; raise `FilesFullError`.

        Each file counts `FILE_OVERHEAD` bytes more than its content.
        """
        ...

    async def file(self, tenant_id: str, file_id: str) -> StoredFile | None:
        """Return a tenant's file, None if there is none or its time is over."""
        ...

    async def remove_files(self, tenant_id: str, file_ids: Sequence[str]) -> None: ...

    # limits
    async def reserve(self, tenant_id: str, key: str, digest: str, seconds: float) -> IdempotentAnswer | None:
        """Reserve an idempotency key for some time and return None; return what is stored under it if it is taken."""
        ...

    async def answer(self, tenant_id: str, key: str, digest: str, answer: bytes | None, seconds: float) -> None:
        """Store the answer under a reserved key for some time; None frees the key."""
        ...

    async def count(self, tenant_id: str, what: str, window: float) -> int:
        """Add one to a tenant's counter, which starts anew every ``window`` seconds; return its value."""
        ...

    async def spent(self, tenant_id: str, day: str) -> float: ...

    # retention
    async def expire(self, before: float) -> int:
        """Delete all sessions that were closed before a time, with all their data; return how many there were.

        Files whose time is over are deleted too.
        """
        ...

    async def trim(self, session_id: str, keep: int) -> None:
        """Delete all but the last ``keep`` events of a log."""
        ...


OWN_SPANS = b"o"
"""First byte of the host's own spans."""

MAX_SPANS_BYTES = 64 * 1024 * 1024
"""Maximum size of a session's spans, without the host's own."""

SPANS_AT_ONCE = 100
"""Number of serialized spans that are read from the store at a time."""

FILE_OVERHEAD = 4096
"""Bytes that each file counts more than its content has, so that small ones are limited too."""

LEASE_SECONDS = 15.0
"""Default of `Store.lease_seconds`."""

NANO = 1_000_000_000
"""Units in a US dollar in which stores add up costs: integers add up exactly."""

DAY_SECONDS = 86_400

SPENT_DAYS = 40
"""Days after which a tenant's spending is deleted."""
