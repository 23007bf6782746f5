"""Record which spans were stored in the spool, so that a process that takes a session over does not send them again.

Such a process gets all spans of the session once more, from the runner's journal. All processes that use the spool's
directory share the records, in an SQLite database. Without a record a span is sent again, so no failure here loses one.
A record is good for the same destinations only: one that was added, or whose address or key has changed, gets all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from host_client.telemetry.otlp import ids_of

from ._spool_file import (
    PAGE,
    UnknownVersionError,
    is_corrupt,
    locked_in_time,
    remove,
    set_aside,
    transaction,
)
from .notices import Notices

NAME = "span-records-{}.sqlite"
"""Name of the database, with the time at which it was made and a random part; the latest one is used.

It does not end as the spool's files do, whose size is limited together. A name is never used again, because SQLite
finds the log of a database by its name, and deletes it when the last process closes the database.
"""

LOCK = "span-records.lock"
"""Name of the file that is locked while a database is created."""

VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
"""Maximum size of the records, apart from what is added between two rounds of upkeep: more than two million spans."""

MAX_AGE = 7 * 86400.0
LOCKED_SECONDS = 0.5
"""Maximum number of seconds that a process waits while another one writes, which takes less than a millisecond."""

REST_SECONDS = 30.0
"""Seconds for which the records are not used after another process has locked them for `LOCKED_SECONDS`."""

_DELETIONS = 50
"""Maximum number of transactions that delete records in one round of upkeep."""

_LEFT_OVER_SECONDS = 3600.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DELETED_AT_ONCE = 100
"""Number of traces in one transaction that deletes; a larger one would make other processes wait."""

_ASKED_AT_ONCE = 500

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA = """
CREATE TABLE boot(id TEXT NOT NULL);
CREATE TABLE trace(
    number INTEGER PRIMARY KEY, id BLOB NOT NULL, destinations BLOB NOT NULL, stored_at REAL NOT NULL,
    UNIQUE(id, destinations)
);
CREATE INDEX trace_by_time ON trace(stored_at);
CREATE TABLE span(trace INTEGER, id BLOB, PRIMARY KEY(trace, id)) WITHOUT ROWID;
"""
_ADD_TRACE = """
INSERT INTO trace(id, destinations, stored_at) VALUES(?, ?, ?)
ON CONFLICT DO UPDATE SET stored_at = excluded.stored_at RETURNING number
"""
_FIND_TRACE = "SELECT number FROM trace WHERE id = ? AND destinations = ?"

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class SpanRecords:
    """The records of one spool directory. Safe for threads; no method raises for a fault of the disk or the database.

    ``faults`` counts failures: ``records`` for those of the disk, ``corrupt`` for corrupt databases. Records are
    deleted ``max_age`` seconds after the last span of their trace was stored. ``now`` is in seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        faults: Counter[str],
        *,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._path = directory / NAME
        """The database that was opened last."""
        self._faults = faults
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._now = now
        self._notices = Notices(_logger)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._busy_at = -math.inf
        self._boot = _boot()
        self._is_closed = False

    def record(self, destinations: Iterable[str], bodies: Iterable[bytes]) -> None:
        """Record the spans of serialized requests that were stored for durable destinations, given by their keys."""
        if not (of := _digest(destinations)):
            return  # no later process could deliver them
        spans: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for body in bodies:
            with contextlib.suppress(DecodeError):  # bytes that are no spans; the sender counts them
                for trace_id, span_id in ids_of(body):
                    spans[trace_id].append(span_id)
        if spans:
            self._use(lambda db: self._add(db, of, spans), None, create=True)

    def known(self, destinations: Iterable[str], trace_id: str, span_ids: Sequence[str]) -> set[str]:
        """Return those of a trace's spans that are recorded for exactly these destinations. Ids are in hex."""
        trace, spans = bytes.fromhex(trace_id), [bytes.fromhex(span_id) for span_id in span_ids]
        of = _digest(destinations)

        def find(db: sqlite3.Connection) -> set[str]:
            found: set[str] = set()
            for first in range(0, len(spans), _ASKED_AT_ONCE):
                asked = spans[first : first + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(asked))
                query = f"SELECT id FROM span WHERE trace = ({_FIND_TRACE}) AND id IN ({marks})"  # noqa: S608  # marks
                found.update(span_id.hex() for (span_id,) in db.execute(query, (trace, of, *asked)))
            return found

        return self._use(find, set())

    def forget_all(self) -> None:
        """Delete the databases, because stored spans were lost and nothing says which."""
        with self._lock:
            self._disconnect()
            try:
                for path in self._directory.glob(NAME.format("*")):
                    remove(path)
            except OSError as error:
                self._failed(error)

    def tidy(self) -> None:
        """Delete records that are too old, the oldest ones beyond the maximum size, and files that are left over."""
        for _ in range(_DELETIONS):
            if not self._use(self._delete_oldest, False):
                break
        with contextlib.suppress(OSError):
            _remove_leftovers(self._directory)

    def close(self) -> None:
        """Close the database; later calls do nothing."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    # -- the database ------------------------------------------------------------------------------------

    def _add(self, db: sqlite3.Connection, destinations: bytes, spans: dict[bytes, list[bytes]]) -> None:
        with transaction(db):
            for trace_id, span_ids in spans.items():
                number = db.execute(_ADD_TRACE, (trace_id, destinations, self._now())).fetchall()[0][0]
                rows = [(number, span_id) for span_id in span_ids]
                db.executemany("INSERT OR IGNORE INTO span VALUES(?, ?)", rows)

    def _delete_oldest(self, db: sqlite3.Connection) -> bool:
        """Delete some traces that are too old, or the oldest if there are too many; return if there may be more."""
        is_full = _used(db) > self._max_bytes
        before = math.inf if is_full else self._now() - self._max_age
        query = "SELECT number FROM trace WHERE stored_at < ? ORDER BY stored_at LIMIT ?"
        numbers = [number for (number,) in db.execute(query, (before, _DELETED_AT_ONCE))]
        _delete(db, numbers)
        return bool(numbers) and (is_full or len(numbers) == _DELETED_AT_ONCE)

    def _use(self, work: Callable[[sqlite3.Connection], T], otherwise: T, *, create: bool = False) -> T:
        """Work with the database; return ``otherwise`` if there is none or it fails. A corrupt one is begun anew."""
        with self._lock:
            if time.monotonic() - self._busy_at < REST_SECONDS:
                self._faults["records"] += 1
                return otherwise
            for is_last in (False, True):
                try:
                    db = self._opened(create)
                    return otherwise if db is None else work(db)
                except UnknownVersionError:
                    self._notices.warn("version", "the records %s are of a later version, and are not used", self._path)
                    break
                except (OSError, sqlite3.Error) as error:
                    if is_corrupt(error):
                        self._set_aside()
                    elif is_last or self._path.exists():
                        self._failed(error)
                        break
                    else:  # another process has just deleted the database
                        self._disconnect()
            return otherwise

    def _opened(self, create: bool) -> sqlite3.Connection | None:
        """Return the latest database, open; another process may have set the former one aside."""
        if self._is_closed or not self._boot:
            return None
        latest = max(self._directory.glob(NAME.format("*")), default=None)
        if self._db is not None and self._path == latest:
            return self._db
        self._disconnect()
        if latest is None:
            if not create:
                return None
            latest = _found_or_made(self._directory, self._boot)
        self._path = latest
        self._db = _connect(latest)
        if _boot_of(self._db) == self._boot:
            return self._db
        # After a loss of power there may be records of spans that the spool's files have lost.
        self._disconnect()
        remove(latest)
        return self._opened(create)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _failed(self, error: Exception) -> None:
        self._disconnect()  # the next call looks again
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
            self._busy_at = time.monotonic()
        self._faults["records"] += 1
        self._notices.warn(
            "records",
            "the span records %s cannot be used (%s): after a takeover, spans may be sent again",
            self._path,
            error,
        )

    def _set_aside(self) -> None:
        self._disconnect()
        if not self._path.exists():  # another process has set it aside
            return
        self._faults["corrupt"] += 1
        _logger.warning("the span records %s are corrupt: they are renamed and begun anew", self._path)
        set_aside(self._path)


def _found_or_made(directory: Path, boot: str) -> Path:
    """Return the path of the latest database, which is created if there is none.

    Processes do this one after the other: if two created one at the same time, only the later one would be used, and
    what was recorded in the other one in between would not be found.
    """
    with _locked(directory / LOCK):
        return max(directory.glob(NAME.format("*")), default=None) or _make(directory, boot)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Lock a file; raise `TimeoutError` if another process has it for longer than `LOCKED_SECONDS`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not locked_in_time(descriptor, LOCKED_SECONDS):
            raise TimeoutError(f"{path} is locked by another process")
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
        os.close(descriptor)


def _make(directory: Path, boot: str) -> Path:
    """Create a database and return its path; no process sees an unfinished one."""
    path = directory / NAME.format(f"{time.time_ns()}-{uuid.uuid4().hex[:8]}")
    new = path.with_suffix(".new")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
            db.execute("INSERT INTO boot VALUES(?)", (boot,))
        new.rename(path)
    except BaseException:
        remove(new)
        raise
    return path


def _remove_leftovers(directory: Path) -> None:
    """Delete the files of processes that were killed while they made or deleted a database."""
    latest = max(directory.glob(NAME.format("*")), default=directory)
    before = time.time() - _LEFT_OVER_SECONDS
    for path in directory.glob(Path(NAME).stem.format("*")):
        is_in_use = path.name.startswith(latest.name) or path.suffix == ".corrupt"
        if not is_in_use and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=rw"  # another process may have deleted it
    db = sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = OFF")
        _check_version(db)
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: sqlite3.Connection) -> None:
    version = _one(db, "PRAGMA user_version")
    if version > VERSION:
        raise UnknownVersionError(version)
    if version < VERSION:
        error = sqlite3.DatabaseError("the file has no tables")
        error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
        raise error


def _boot_of(db: sqlite3.Connection) -> str:
    """Return the id of the machine's start at which a database was made."""
    return (db.execute("SELECT id FROM boot").fetchone() or ("",))[0]


def _delete(db: sqlite3.Connection, traces: Sequence[int]) -> None:
    if not traces:
        return
    with transaction(db):
        for table, column in (("span", "trace"), ("trace", "number")):
            db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(number,) for number in traces])  # noqa: S608  # constants


def _digest(destinations: Iterable[str]) -> bytes:
    """Return a short name of a set of destinations, which is empty for none."""
    keys = sorted(destinations)
    return hashlib.sha256("\n".join(keys).encode()).digest()[:8] if keys else b""


def _used(db: sqlite3.Connection) -> int:
    """Return the size of the database's content in bytes."""
    return (_one(db, "PRAGMA page_count") - _one(db, "PRAGMA freelist_count")) * PAGE


def _one(db: sqlite3.Connection, query: str) -> int:
    return db.execute(query).fetchone()[0]


def _boot() -> str:
    """Return the id of the machine's last start, empty where the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
