"""The store of a service that is a single process: a SQLite file.

No other process writes the file, so ownership is kept in memory, and notes and live events stay in the process. Costs
are whole 1e-9 US dollars.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from ._codec import decode_decision, decode_file, decode_session, decode_token, decode_tokens, encode, encode_file
from ._cursor import page_of, read_cursor
from ._fanout import Fanout, Inbox
from ._sqlite_thread import SqliteThread
from .base import (
    DAY_SECONDS,
    FILE_OVERHEAD,
    LEASE_SECONDS,
    MAX_SPANS_BYTES,
    NANO,
    NO_ADDITIONS,
    OWN_SPANS,
    SPANS_AT_ONCE,
    SPENT_DAYS,
    Additions,
    Decision,
    FilesFullError,
    IdempotentAnswer,
    LogEntry,
    Note,
    NotOwnerError,
    Queued,
    SessionState,
    Status,
    StoredFile,
    StoredSession,
    StoreError,
    Token,
    TooManyError,
    UnknownSessionError,
    log_left_out,
)

_FORGET_AT_ONCE = 20
"""Sessions or files that one transaction deletes; kept small so that other calls do not wait long."""


class SqliteStore:
    """A `Store` in a file that one process has to itself; ``clock`` returns seconds since the epoch.

    If ``alone`` is False, it is only a `TokenStore`, used beside the process that has the file.
    """

    shared = False
    lease_seconds = LEASE_SECONDS

    def __init__(self, path: Path, *, alone: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._thread = SqliteThread(path, alone=alone)
        self._fanout = Fanout()
        # Used in the thread only:
        self._owners: dict[str, str] = {}
        self._numbers_and_tenants: dict[str, tuple[int, str]] = {}
        self._sessions_with_spans_left_out = set[str]()
        # Added to in the event loop only, after a commit:
        self._commands_forgotten: dict[str, int] = {}
        """Position up to which an owned session's commands were deleted."""
        self._span_bytes: dict[str, int] = {}
        """Size of a session's committed spans, without the host's own."""

    async def open(self) -> None:
        await self._thread.start()
        await self._thread.run(self._forget_counters)

    async def close(self) -> None:
        self._fanout.close()
        await self._thread.stop()
        self._owners.clear()
        self._numbers_and_tenants.clear()
        self._commands_forgotten.clear()

    async def ping(self) -> None:
        await self._rows("SELECT 1 FROM sessions LIMIT 1")

    async def _rows(self, query: str, *values: Any) -> list[Any]:
        """Return the rows of a query."""
        return await self._thread.run(lambda connection: connection.execute(query, values).fetchall())

    # -- sessions -----------------------------------------------------------------------------------------

    async def create(
        self, stored: StoredSession, owner: str, commands: Sequence[bytes], *, most_open: int | None
    ) -> None:
        record, state = stored

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM sessions WHERE id = ?", (record.id,)).fetchone():
                raise StoreError(f"there is a session {record.id} already")
            if most_open is not None:
                query = "SELECT COUNT(*) FROM sessions WHERE tenant_id = ? AND is_open"
                if connection.execute(query, (record.tenant_id,)).fetchone()[0] >= most_open:
                    raise TooManyError(most_open)
            number = connection.execute(
                "INSERT INTO sessions (id, tenant_id, created_at, closed_at, status, is_open, last_event, last_command,"
                " record, state) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                (
                    record.id,
                    record.tenant_id,
                    record.created_at,
                    state.closed_at,
                    state.status,
                    not state.is_closed,
                    state.last_event_id,
                    encode(record),
                    encode(state),
                ),
            ).lastrowid
            assert number is not None
            for command in commands:
                _push(connection, number, command)
            self._owners[record.id] = owner

        await self._thread.run(work)

    async def get(self, session_id: str) -> StoredSession | None:
        rows = await self._rows("SELECT record, state FROM sessions WHERE id = ?", session_id)
        return decode_session(*rows[0]) if rows else None

    async def page(
        self, tenant_id: str | None, *, status: Status | None, limit: int, before: str | None
    ) -> tuple[list[StoredSession], str | None]:
        conditions = {
            "tenant_id = ?": (tenant_id,) if tenant_id is not None else None,
            "status = ?": (status,) if status is not None else None,
            "(created_at, id) < (?, ?)": read_cursor(before) if before is not None else None,
        }
        given = {condition: values for condition, values in conditions.items() if values is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        query = f"SELECT record, state FROM sessions {where} ORDER BY created_at DESC, id DESC LIMIT ?"  # noqa: S608 - of constants
        values = [value for each in given.values() for value in each]
        return page_of(await self._sessions(query, *values, limit + 1), limit)

    async def open_sessions(self, tenant_id: str) -> list[StoredSession]:
        query = "SELECT record, state FROM sessions WHERE tenant_id = ? AND is_open ORDER BY created_at, id"
        return await self._sessions(query, tenant_id)

    async def _sessions(self, query: str, *values: Any) -> list[StoredSession]:
        """Return the sessions of a query; they are decoded in the thread, as they can be many and large."""
        return await self._thread.run(
            lambda connection: [decode_session(*row) for row in connection.execute(query, values)]
        )

    async def unfinished(self) -> list[str]:
        def work(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT id FROM sessions WHERE is_open ORDER BY created_at, id")
            return [session_id for (session_id,) in rows if session_id not in self._owners]

        return await self._thread.run(work)

    # -- ownership ----------------------------------------------------------------------------------------

    async def acquire(self, session_id: str, owner: str) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            is_there = connection.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone()
            return bool(is_there) and self._owners.setdefault(session_id, owner) == owner

        return await self._thread.run(work)

    async def renew(self, session_ids: Sequence[str], owner: str) -> list[str]:
        return []

    async def release(self, session_id: str, owner: str) -> None:
        def work(_: sqlite3.Connection) -> None:
            if self._owners.get(session_id) == owner:
                del self._owners[session_id]
                self._numbers_and_tenants.pop(session_id, None)

        await self._thread.run(work)
        self._commands_forgotten.pop(session_id, None)

    # -- the log ------------------------------------------------------------------------------------------

    async def append(
        self,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions = NO_ADDITIONS,
    ) -> None:
        encoded = encode(state)
        span_bytes: int | None = None
        has_commands_done = state.commands_done > self._commands_forgotten.get(session_id, 0)

        def work(connection: sqlite3.Connection) -> None:
            nonlocal span_bytes
            if self._owners.get(session_id) != owner:
                raise NotOwnerError(f"{owner} does not own the session {session_id}")
            number, tenant_id = self._number_and_tenant(connection, session_id)
            first = state.last_event_id + 1 - len(events)
            if not _update(connection, number, first, state, encoded):
                _check_kept(connection, number, events, encoded)
                return
            if events:
                rows = [(number, first + index, data) for index, data in enumerate(events)]
                connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
            if has_commands_done:
                query = "DELETE FROM commands WHERE session = ? AND position <= ?"
                connection.execute(query, (number, state.commands_done))
            bounded = more
            if more.spans:
                kept_spans, span_bytes = self._bounded(connection, number, session_id, more.spans)
                bounded = replace(more, spans=kept_spans)
            _add(connection, number, tenant_id, bounded)

        def then() -> None:
            self._commands_forgotten[session_id] = state.commands_done
            if span_bytes is not None:
                self._span_bytes[session_id] = span_bytes
            if events:
                self._fanout.note(session_id, Note.EVENTS)

        await self._thread.run(work, then, may_wait=True)

    def _bounded(
        self, connection: sqlite3.Connection, number: int, session_id: str, spans: Sequence[bytes]
    ) -> tuple[Sequence[bytes], int]:
        """Return those of a session's new spans that fit `MAX_SPANS_BYTES`, and the size of its spans with them."""
        size = self._span_bytes.get(session_id)
        if size is None:
            query = "SELECT COALESCE(SUM(LENGTH(data)), 0) FROM spans WHERE session = ? AND substr(data, 1, 1) != ?"
            (size,) = connection.execute(query, (number, OWN_SPANS)).fetchone()
        kept: list[bytes] = []
        for data in spans:
            added = 0 if data.startswith(OWN_SPANS) else len(data)
            if size + added <= MAX_SPANS_BYTES:
                kept.append(data)
                size += added
            elif session_id not in self._sessions_with_spans_left_out:
                self._sessions_with_spans_left_out.add(session_id)
                log_left_out(session_id, size)
        return kept, size

    def _number_and_tenant(self, connection: sqlite3.Connection, session_id: str) -> tuple[int, str]:
        """Return a session's row number and tenant, read once while it is owned; raise `NotOwnerError`."""
        if (known := self._numbers_and_tenants.get(session_id)) is not None:
            return known
        row = connection.execute("SELECT number, tenant_id FROM sessions WHERE id = ?", (session_id,)).fetchone()
        if row is None:
            raise NotOwnerError(f"there is no session {session_id} any more")
        self._numbers_and_tenants[session_id] = row
        return row

    async def read(
        self, session_id: str, after: int, *, limit: int = 1000, max_bytes: int = 4 * 1024 * 1024
    ) -> list[LogEntry]:
        def work(connection: sqlite3.Connection) -> list[LogEntry]:
            entries: list[LogEntry] = []
            size = 0
            query = (
                "SELECT events.id, data FROM events JOIN sessions ON number = session"
                " WHERE sessions.id = ? AND events.id > ? ORDER BY events.id LIMIT ?"
            )
            for entry in map(LogEntry._make, connection.execute(query, (session_id, after, limit))):
                size += len(entry.data)
                if entries and size > max_bytes:
                    break
                entries.append(entry)
            return entries

        return await self._thread.run(work)

    async def oldest(self, session_id: str) -> int:
        query = (
            "SELECT COALESCE((SELECT MIN(id) FROM events WHERE session = number), last_event + 1)"
            " FROM sessions WHERE id = ?"
        )
        rows = await self._rows(query, session_id)
        return rows[0][0] if rows else 1

    async def spans(self, session_id: str) -> AsyncIterator[bytes]:
        after = 0
        query = (
            "SELECT spans.id, data FROM spans JOIN sessions ON number = session"
            " WHERE sessions.id = ? AND spans.id > ? ORDER BY spans.id LIMIT ?"
        )
        while rows := await self._rows(query, session_id, after, SPANS_AT_ONCE):
            for after, data in rows:  # noqa: B007 - the next query starts from it
                yield data

    # -- notes, live events, commands and decisions -------------------------------------------------------

    @asynccontextmanager
    async def subscribe(self, session_id: str, *, only: Note | None = None) -> AsyncGenerator[Inbox]:
        with self._fanout.inbox(session_id, only) as inbox:
            yield inbox

    async def publish(self, session_id: str, data: bytes) -> None:
        self._fanout.live(session_id, data)

    async def push(self, session_id: str, data: bytes) -> int:
        return await self._thread.run(
            lambda connection: _push(connection, _number(connection, session_id), data),
            lambda: self._fanout.note(session_id, Note.COMMANDS),
        )

    async def commands(self, session_id: str, after: int) -> list[Queued]:
        query = (
            "SELECT position, data FROM commands JOIN sessions ON number = session"
            " WHERE id = ? AND position > ? ORDER BY position"
        )
        return [Queued(*row) for row in await self._rows(query, session_id, after)]

    async def decide(self, session_id: str, decision: Decision, command: bytes | None) -> Decision | None:
        def work(connection: sqlite3.Connection) -> Decision | None:
            number = _number(connection, session_id)
            row = (number, decision.request_id, encode(decision))
            if not connection.execute("INSERT OR IGNORE INTO decisions VALUES (?, ?, ?)", row).rowcount:
                query = "SELECT decision FROM decisions WHERE session = ? AND request_id = ?"
                (first,) = connection.execute(query, (number, decision.request_id)).fetchone()
                return decode_decision(first)
            if command is not None:
                _push(connection, number, command)
            return None

        # Also noted if another decision came first: a superfluous note does no harm.
        note = (lambda: self._fanout.note(session_id, Note.COMMANDS)) if command is not None else None
        return await self._thread.run(work, note)

    async def decision(self, session_id: str, request_id: str) -> Decision | None:
        query = "SELECT decision FROM decisions JOIN sessions ON number = session WHERE id = ? AND request_id = ?"
        rows = await self._rows(query, session_id, request_id)
        return decode_decision(rows[0][0]) if rows else None

    # -- files --------------------------------------------------------------------------------------------

    async def put_file(
        self, tenant_id: str, file_id: str, file: StoredFile, seconds: float, *, most_bytes: int | None
    ) -> None:
        now, encoded, size = self._clock(), encode_file(file), len(file.data) + FILE_OVERHEAD

        def work(connection: sqlite3.Connection) -> None:
            if most_bytes is not None:
                query = "SELECT COALESCE(SUM(size), 0) FROM files WHERE tenant_id = ? AND expires_at > ? AND id != ?"
                (used,) = connection.execute(query, (tenant_id, now, file_id)).fetchone()
                if used + size > most_bytes:
                    raise FilesFullError(most_bytes)
            row = (tenant_id, file_id, size, now + seconds, encoded)
            connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)

        await self._thread.run(work)

    async def file(self, tenant_id: str, file_id: str) -> StoredFile | None:
        query = "SELECT file FROM files WHERE tenant_id = ? AND id = ? AND expires_at > ?"
        rows = await self._rows(query, tenant_id, file_id, self._clock())
        return decode_file(rows[0][0]) if rows else None

    async def remove_files(self, tenant_id: str, file_ids: Sequence[str]) -> None:
        rows = [(tenant_id, each) for each in file_ids]
        query = "DELETE FROM files WHERE tenant_id = ? AND id = ?"
        await self._thread.run(lambda connection: connection.executemany(query, rows))

    async def _forget_files(self) -> None:
        """Delete the files whose time is over."""
        query = "DELETE FROM files WHERE rowid IN (SELECT rowid FROM files WHERE expires_at <= ? LIMIT ?)"
        values = (self._clock(), _FORGET_AT_ONCE)
        while await self._thread.run(lambda connection: connection.execute(query, values).rowcount):
            pass

    # -- limits -------------------------------------------------------------------------------------------

    async def reserve(self, tenant_id: str, key: str, digest: str, seconds: float) -> IdempotentAnswer | None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> IdempotentAnswer | None:
            connection.execute("DELETE FROM answers WHERE expires_at <= ?", (now,))
            query = "SELECT digest, answer FROM answers WHERE tenant_id = ? AND key = ?"
            if row := connection.execute(query, (tenant_id, key)).fetchone():
                return IdempotentAnswer(*row)
            row = (tenant_id, key, digest, None, now + seconds)
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", row)
            return None

        return await self._thread.run(work)

    async def answer(self, tenant_id: str, key: str, digest: str, answer: bytes | None, seconds: float) -> None:
        until = self._clock() + seconds

        def work(connection: sqlite3.Connection) -> None:
            if answer is None:
                query = "DELETE FROM answers WHERE tenant_id = ? AND key = ? AND digest = ?"
                connection.execute(query, (tenant_id, key, digest))
                return
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant_id, key) DO UPDATE"
                " SET answer = excluded.answer, expires_at = excluded.expires_at WHERE digest = excluded.digest",
                (tenant_id, key, digest, answer, until),
            )

        await self._thread.run(work)

    async def count(self, tenant_id: str, what: str, window: float) -> int:
        ends = (self._clock() // window + 1) * window

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT INTO counts VALUES (?, ?, 1, ?) ON CONFLICT (tenant_id, what) DO UPDATE SET"
                " number = CASE WHEN expires_at = excluded.expires_at THEN number + 1 ELSE 1 END,"
                " expires_at = excluded.expires_at",
                (tenant_id, what, ends),
            )
            query = "SELECT number FROM counts WHERE tenant_id = ? AND what = ?"
            return connection.execute(query, (tenant_id, what)).fetchone()[0]

        return await self._thread.run(work)

    async def spent(self, tenant_id: str, day: str) -> float:
        rows = await self._rows("SELECT nano_usd FROM spent WHERE day = ? AND tenant_id = ?", day, tenant_id)
        return (rows[0][0] if rows else 0) / NANO

    # -- tokens -------------------------------------------------------------------------------------------

    async def add_token(self, token: Token) -> None:
        await self._rows("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?)", token.id, token.digest, encode(token))

    async def find_token(self, digest: str) -> Token | None:
        rows = await self._rows("SELECT token FROM tokens WHERE digest = ?", digest)
        return decode_token(rows[0][0]) if rows else None

    async def tokens(self) -> list[Token]:
        return decode_tokens([data for (data,) in await self._rows("SELECT token FROM tokens")])

    async def remove_token(self, token_id: str) -> bool:
        query = "DELETE FROM tokens WHERE id = ?"
        return await self._thread.run(lambda connection: connection.execute(query, (token_id,)).rowcount > 0)

    # -- retention ----------------------------------------------------------------------------------------

    async def expire(self, before: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            query = "SELECT number, id FROM sessions WHERE NOT is_open AND closed_at < ? LIMIT ?"
            found = cast("list[tuple[int, str]]", connection.execute(query, (before, _FORGET_AT_ONCE)).fetchall())
            for number, session_id in found:
                for table in ("events", "spans", "commands", "decisions"):
                    connection.execute(f"DELETE FROM {table} WHERE session = ?", (number,))  # noqa: S608 - of constants
                connection.execute("DELETE FROM sessions WHERE number = ?", (number,))
                self._owners.pop(session_id, None)
                self._numbers_and_tenants.pop(session_id, None)
                self._span_bytes.pop(session_id, None)
                self._sessions_with_spans_left_out.discard(session_id)
            return len(found)

        total = 0
        while forgotten := await self._thread.run(work):
            total += forgotten
        await self._thread.run(self._forget_counters)
        await self._forget_files()
        return total

    async def trim(self, session_id: str, keep: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute("SELECT number, last_event FROM sessions WHERE id = ?", (session_id,)).fetchone()
            if row is not None:
                number, last = row
                connection.execute("DELETE FROM events WHERE session = ? AND id <= ?", (number, last - keep))

        await self._thread.run(work)

    def _forget_counters(self, connection: sqlite3.Connection) -> None:
        """Delete expired answers, counters and days."""
        now = self._clock()
        connection.execute("DELETE FROM answers WHERE expires_at <= ?", (now,))
        connection.execute("DELETE FROM counts WHERE expires_at <= ?", (now,))
        oldest = datetime.fromtimestamp(now - SPENT_DAYS * DAY_SECONDS, UTC).date().isoformat()
        connection.execute("DELETE FROM spent WHERE day < ?", (oldest,))


def _number(connection: sqlite3.Connection, session_id: str) -> int:
    row = connection.execute("SELECT number FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise UnknownSessionError(f"there is no session {session_id}")
    return row[0]


def _update(connection: sqlite3.Connection, number: int, first: int, state: SessionState, encoded: bytes) -> bool:
    """Write the state if event number ``first`` comes next in the log; return False if it does not."""
    if not state.is_closed:
        # The status rarely changes; if it does not, the indexes on it need not be written.
        query = "UPDATE sessions SET state = ?, last_event = ? WHERE number = ? AND last_event = ? AND status = ?"
        values = (encoded, state.last_event_id, number, first - 1, state.status)
        if connection.execute(query, values).rowcount:
            return True
    query = (
        "UPDATE sessions SET state = ?, last_event = ?, status = ?, is_open = ?, closed_at = ?"
        " WHERE number = ? AND last_event = ?"
    )
    status = (state.status, not state.is_closed, state.closed_at)
    return connection.execute(query, (encoded, state.last_event_id, *status, number, first - 1)).rowcount > 0


def _check_kept(connection: sqlite3.Connection, number: int, events: Sequence[bytes], encoded: bytes) -> None:
    """Raise `NotOwnerError` unless these events and this state were the last to be written."""
    query = (
        "SELECT state, data FROM sessions JOIN events ON session = number AND events.id = last_event WHERE number = ?"
    )
    row = connection.execute(query, (number,)).fetchone()
    if not events or row != (encoded, events[-1]):
        raise NotOwnerError("the log has other events at these numbers: another process wrote it")


def _push(connection: sqlite3.Connection, number: int, data: bytes) -> int:
    connection.execute("UPDATE sessions SET last_command = last_command + 1 WHERE number = ?", (number,))
    (position,) = connection.execute("SELECT last_command FROM sessions WHERE number = ?", (number,)).fetchone()
    connection.execute("INSERT INTO commands VALUES (?, ?, ?)", (number, position, data))
    return position


def _add(connection: sqlite3.Connection, number: int, tenant_id: str, more: Additions) -> None:
    """Write the spans, decisions and cost that come with events."""
    if more.spans:
        rows = [(number, data) for data in more.spans]
        connection.executemany("INSERT INTO spans (session, data) VALUES (?, ?)", rows)
    if more.decisions:
        rows = [(number, decision.request_id, encode(decision)) for decision in more.decisions]
        connection.executemany("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?)", rows)
    if nano := round(more.cost_usd * NANO):
        connection.execute(
            "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET nano_usd = nano_usd + excluded.nano_usd",
            (more.day, tenant_id, nano),
        )
