"""What every turn cost, in an SQLite file that several processes write at once. Nothing is sampled.

A turn is known by its session and its span, so that one that is told again is not counted again. Money is whole
1e-9 US dollars: sums are exact. The time is the host's, as a sandbox's clock could move a cost to another month.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from agent_runner.protocol import AnyEvent, Result, Start
from agent_runner.sanitize import single_line

from .turns import Turn, turn_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from .pipeline import Who

By = Literal["user", "tenant", "model", "day"]
BY: tuple[By, ...] = get_args(By)

VERSION = 1
MAX_PENDING = 10_000
"""Turns that wait for a file that cannot be written; older ones are lost."""
MAX_SESSIONS = 10_000
BUSY_SECONDS = 5.0
"""How long another process's write is waited for."""
RETRY_SECONDS = 5.0
_MAX_NAME = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY,
    ended_at REAL NOT NULL,
    session TEXT NOT NULL,
    span TEXT NOT NULL,
    trace TEXT NOT NULL,
    turn INTEGER NOT NULL,
    user TEXT,
    tenant TEXT,
    tier TEXT,
    error_type TEXT,
    nano_usd INTEGER NOT NULL,
    UNIQUE (session, trace, span)
);
CREATE INDEX IF NOT EXISTS turns_ended_at ON turns (ended_at);
CREATE TABLE IF NOT EXISTS parts (
    turn_id INTEGER NOT NULL REFERENCES turns (id),
    model TEXT NOT NULL,
    nano_usd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    PRIMARY KEY (turn_id, model)
) WITHOUT ROWID;
"""

_KEYS: dict[By, str] = {
    "user": "turns.user",
    "tenant": "turns.tenant",
    "model": "parts.model",
    "day": "date(turns.ended_at, 'unixepoch')",
}

_logger = logging.getLogger(__name__)


class LedgerError(Exception):
    """The ledger cannot be read; the message says why, and what to do."""


class Entry(NamedTuple):
    """One turn as it is written. ``ended_at`` is in seconds since the epoch."""

    ended_at: float
    session: str
    span: str
    trace: str
    turn: int
    user: str | None
    tenant: str | None
    tier: str | None
    error_type: str | None
    figures: Turn


@dataclass(frozen=True)
class Total:
    """What belongs to one user, tenant, model or day (UTC); ``key`` None where a turn had none."""

    key: str | None
    turns: int
    nano_usd: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int


class Ledger:
    """An `Observer` that writes a row a turn. Never raises but in `totals`: what it cannot write waits, then is lost.

    ``lost`` counts the turns that were given up, ``disagreements`` those whose models' costs did not add up.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lost = 0
        self.disagreements = 0
        self._clock = clock
        self._models: OrderedDict[str, str] = OrderedDict()
        self._pending: deque[Entry] = deque()
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._told = False

    # -- what the pipeline calls -----------------------------------------------------------------------

    def begin(self, who: Who) -> None:
        """A session begins: nothing has been spent."""

    def observe_span(self, span: ReadableSpan) -> None:
        """Spans cost nothing."""

    def observe(self, event: AnyEvent, who: Who) -> None:
        """Take note of a session's model, and write a turn that ended."""
        match event:
            case Start():
                self._models[who.session_id] = event.data.model
                if len(self._models) > MAX_SESSIONS:
                    self._models.popitem(last=False)
            case Result():
                self.record(event, who)
            case _:
                pass

    def end(self, who: Who) -> None:
        """A session has ended."""
        self._models.pop(who.session_id, None)

    def record(self, event: Result, who: Who) -> None:
        """Write a turn that ended; once, however often it is told."""
        try:
            figures = turn_of(event.data, self._models.get(who.session_id))
        except ValueError as error:
            self._lose(1, str(error))
            return
        if not figures.agrees:
            self.disagreements += 1
        entry = Entry(
            self._clock(),
            _name(who.session_id) or "",
            event.span_id,
            event.trace_id,
            event.data.turn,
            _name(who.user_id),
            _name(who.tenant_id),
            _name(who.tier),
            event.data.error_type,
            figures,
        )
        with self._lock:
            self._pending.append(entry)
            if len(self._pending) > MAX_PENDING:
                self._pending.popleft()
                self._lose(1, "too many turns wait to be written")
            if time.monotonic() >= self._not_before:
                self._write(BUSY_SECONDS)

    def close(self, timeout: float) -> bool:
        """Write what waits, trying for so many seconds; return whether nothing was lost."""
        until = time.monotonic() + timeout
        with self._lock:
            while self._pending and not self._write(max(0.0, until - time.monotonic())):
                if time.monotonic() + 0.1 > until:
                    break
                time.sleep(0.1)
            self._lose(len(self._pending), "the file could not be written")
            self._pending.clear()
            self._disconnect()
        return not self.lost

    # -- writing ----------------------------------------------------------------------------------------

    def _write(self, patience: float) -> bool:
        """Write all that waits, in one transaction; return whether it was written.

        ``patience`` is how many seconds other processes are waited for.
        """
        try:
            connection = self._connected(patience)
            with _transaction(connection):
                for entry in self._pending:
                    _insert(connection, entry)
        except (sqlite3.Error, OSError, LedgerError) as error:
            self._disconnect()
            self._not_before = time.monotonic() + RETRY_SECONDS
            if not self._told:
                self._told = True
                _logger.warning("costs cannot be written to %s, and are kept in memory: %s", self.path, error)
            return False
        self._pending.clear()
        self._told = False
        return True

    def _connected(self, patience: float) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _open_to_write(self.path, patience)
        self._connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # a corrupt file: it is not used any more
                self._connection.close()
            self._connection = None

    def _lose(self, turns: int, why: str) -> None:
        if turns and not self.lost:
            _logger.warning("the cost of a turn is missing from %s (further ones are counted only): %s", self.path, why)
        self.lost += turns

    # -- reading ----------------------------------------------------------------------------------------

    def totals(self, by: By, since: float | None = None) -> list[Total]:
        """Return the sums, the dearest first, days in their order; ``since`` is in seconds since the epoch.

        Raise `LedgerError` for a file that cannot be read; one that is not there is empty.
        """
        return self._sums(_KEYS[by], "1" if by == "day" else "3 DESC, 1", since)

    def total(self, since: float | None = None) -> Total:
        """Return the sum of all; see `totals`."""
        return next(iter(self._sums("NULL", "1", since)), Total(None, 0, 0, 0, 0, 0, 0))

    def _sums(self, key: str, order: str, since: float | None) -> list[Total]:
        if not self.path.exists():
            return []
        query = f"""
            SELECT {key}, COUNT(DISTINCT turns.id), SUM(parts.nano_usd), SUM(parts.input_tokens),
                SUM(parts.output_tokens), SUM(parts.cache_read_tokens), SUM(parts.cache_creation_tokens)
            FROM turns JOIN parts ON parts.turn_id = turns.id
            WHERE turns.ended_at >= ? GROUP BY 1 ORDER BY {order}
        """  # noqa: S608 - of constants
        try:
            with contextlib.closing(_connect(self.path, BUSY_SECONDS)) as connection:
                if _is_new(connection, self.path):
                    return []
                return [Total(*row) for row in connection.execute(query, (since or 0.0,))]
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path} cannot be read as a ledger of costs: {error}") from None


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    # A lock of ours keeps threads apart.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, patience, isolation_level=None, check_same_thread=False, uri=True)


def _open_to_write(path: Path, patience: float) -> sqlite3.Connection:
    """Open the file, made if it is not there; raise what `sqlite3` and the file system raise, and `LedgerError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made here, as SQLite would let others read who spent what.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = _connect(path, patience)
    try:
        if _is_new(connection, path):
            connection.execute("PRAGMA journal_mode = WAL")  # stays with the file
            with _transaction(connection):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty; raise `LedgerError` for what is no ledger of this version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerError(f"{path} was written by a newer version of sandspan: upgrade, or set SANDSPAN_LEDGER")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name != 'turns'").fetchone()
    if version == 0 and tables:
        raise LedgerError(f"{path} is no ledger of costs: set SANDSPAN_LEDGER to another file")
    return version == 0


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # what fails may have rolled back by itself
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    figures = entry.figures
    cursor = connection.execute(
        "INSERT INTO turns (ended_at, session, span, trace, turn, user, tenant, tier, error_type, nano_usd)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (*entry[:-1], figures.nano),
    )
    if cursor.rowcount:  # else it was told before
        rows = [(cursor.lastrowid, *part) for part in figures.parts]
        connection.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _name(value: str | None) -> str | None:
    return single_line(value, _MAX_NAME) if value else None
