"""One file of the spool: requests, the undecided traces they belong to, and the destinations they are due to.

It is an SQLite database in WAL mode that one process has to itself. Each write is one transaction, which survives the
death of the process; after a loss of power the last ones may be missing. Not safe for threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from host_client.telemetry.batch import Batch

_POLL_SECONDS = 0.02

VERSION = 1
PAGE = 4096
_WAL_PAGES = 512
_FREE_PAGES = 256
"""Number of free pages below which the file is not compacted."""

_DROP_AT_ONCE = 1000
_READ_AT_ONCE = 64
_MAX_SET_ASIDE = 3
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_SCHEMA = """
CREATE TABLE request(id INTEGER PRIMARY KEY, at REAL NOT NULL, spans INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE held(trace_id TEXT, request INTEGER, PRIMARY KEY(trace_id, request)) WITHOUT ROWID;
CREATE TABLE due(destination TEXT, request INTEGER, PRIMARY KEY(destination, request)) WITHOUT ROWID;
CREATE TABLE destination(name TEXT PRIMARY KEY, durable INTEGER NOT NULL) WITHOUT ROWID;
"""
_UNREFERENCED = """
DELETE FROM request WHERE id = ?
AND NOT EXISTS (SELECT 1 FROM destination JOIN due ON due.destination = name AND due.request = id)
"""


_DUE_TO_ALL = """
SELECT body FROM request WHERE NOT EXISTS (
    SELECT 1 FROM destination WHERE durable = 1
    AND NOT EXISTS (SELECT 1 FROM due WHERE due.destination = name AND due.request = request.id)
)
"""

_REFERENCES = """
SELECT destination, request FROM due UNION ALL SELECT name, request FROM held CROSS JOIN destination WHERE durable = 1
"""


class UnknownVersionError(Exception):
    """Raised for a file of a later version, which this version cannot read."""


class StoredBatch(NamedTuple):
    """A request in the file, with its number."""

    id: int
    batch: Batch


@contextmanager
def transaction(db: sqlite3.Connection) -> Generator[None]:
    """Make the changes of the block to a database in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back already, and then ROLLBACK raises.
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("ROLLBACK")
        raise


def is_corrupt(error: Exception) -> bool:
    """Return whether SQLite raised an error because a file is corrupt."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


def set_aside(path: Path) -> None:
    """Rename a corrupt database, and delete the oldest ones that were renamed before."""
    aside = path.with_suffix(".corrupt")
    with contextlib.suppress(OSError):
        # First, as SQLite would apply the log to a new database of this name.
        for name in _companions(path):
            name.unlink(missing_ok=True)
        path.replace(aside)
        path.with_suffix(".lock").unlink(missing_ok=True)
        for old in sorted(path.parent.glob("*.corrupt"), key=lambda p: p.stat().st_mtime)[:-_MAX_SET_ASIDE]:
            old.unlink()


def remove(path: Path) -> None:
    """Delete a database and the files that belong to it, the lock last."""
    for name in (path, *_companions(path), path.with_suffix(".lock")):
        name.unlink(missing_ok=True)


def _companions(path: Path) -> tuple[Path, ...]:
    """Return the files that SQLite keeps beside a database."""
    return tuple(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm", "-journal"))


def spans_in_corrupt(path: str) -> Counter[str]:
    """Return the numbers of spans in a corrupt file by destination: at least, as far as the file can be read."""
    spans: Counter[str] = Counter()
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path)) as db:
        for name, number in db.execute(_REFERENCES):
            spans[name] += 1
            with contextlib.suppress(sqlite3.DatabaseError, TypeError):  # TypeError: there is no such request
                spans[name] += db.execute("SELECT spans FROM request WHERE id = ?", (number,)).fetchone()[0] - 1
    return spans


class SpoolFile:
    """Requests that wait, oldest first. A method that raises `sqlite3.Error` leaves the file unchanged."""

    def __init__(self, path: str) -> None:
        # Several threads use the connection; the spool's lock keeps them apart.
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory, fewer system calls
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        self._db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * PAGE}")
        version = self._one("PRAGMA user_version")
        if version not in (0, VERSION):
            raise UnknownVersionError(version)
        if version == 0:
            with transaction(self._db):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._next = 1 + (self._one("SELECT max(id) FROM request") or 0)
        self._delivered: defaultdict[str, set[int]] = defaultdict(set)
        """Requests by destination that were delivered but could not be removed, because the disk was full."""
        self._skipped: defaultdict[str, set[int]] = defaultdict(set)
        """Requests by destination that only the next process sends."""
        self.waiting: Counter[str] = Counter()
        """Numbers of spans that are due, by destination."""
        self._held: Counter[str] = Counter()
        """Numbers of spans of undecided traces, by trace id."""
        self._count()

    def close(self) -> None:
        """Close the database; its content stays."""
        self._db.close()

    @property
    def is_empty(self) -> bool:
        """Return whether the file holds no requests."""
        return self._one("SELECT count(*) FROM (SELECT 1 FROM request LIMIT 1)") == 0

    @property
    def used(self) -> int:
        """Return the size of the file's content in bytes."""
        return (self._one("PRAGMA page_count") - self._one("PRAGMA freelist_count")) * PAGE

    def register(self, destinations: Mapping[str, bool]) -> None:
        """Register the destinations of this process; the values say whether they are durable."""
        with transaction(self._db):
            # 2 means durable, of an earlier process: spans that are held from now on are not for it.
            self._db.execute("UPDATE destination SET durable = 2 WHERE durable")
            self._db.executemany("INSERT OR REPLACE INTO destination VALUES(?, ?)", destinations.items())

    def durable(self) -> list[str]:
        """Return the durable destinations of the last process that registered its own."""
        return [name for (name,) in self._db.execute("SELECT name FROM destination WHERE durable = 1")]

    def take_over(self) -> None:
        """Make a dead process's undecided spans due; delete the spans that only that process could deliver."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO due SELECT name, request FROM held CROSS JOIN destination WHERE durable = 1"
            )
            self._db.execute("DELETE FROM held")
            self._db.execute("DELETE FROM due WHERE destination IN (SELECT name FROM destination WHERE NOT durable)")
            self._db.execute("DELETE FROM destination WHERE NOT durable")
            self._db.execute("DELETE FROM request WHERE id NOT IN (SELECT request FROM due)")
        self._count()

    def _count(self) -> None:
        totals = self._db.execute("SELECT destination, sum(spans) FROM due JOIN request ON id = request GROUP BY 1")
        self.waiting = Counter(dict(totals))
        held = self._db.execute("SELECT trace_id, sum(spans) FROM held JOIN request ON id = request GROUP BY 1")
        self._held = Counter(dict(held))

    def due_to_all(self) -> Iterator[list[bytes]]:
        """Yield the serialized requests that are still due to all destinations of `durable`, some at a time."""
        with contextlib.closing(self._db.execute(_DUE_TO_ALL)) as rows:
            while some := rows.fetchmany(_READ_AT_ONCE):
                yield [body for (body,) in some]

    def hold(self, trace_id: str, batches: Sequence[Batch], at: float) -> None:
        """Add requests of an undecided trace; ``at`` is in seconds since the epoch."""
        with transaction(self._db):
            numbers = self._add(batches, at)
            self._db.executemany("INSERT INTO held VALUES(?, ?)", [(trace_id, number) for number in numbers])
        self._held[trace_id] += sum(batch.spans for batch in batches)

    def put(self, batches: Sequence[Batch], destinations: Iterable[str], at: float) -> list[StoredBatch]:
        """Add requests that are due to destinations."""
        names = list(destinations)
        with transaction(self._db):
            numbers = self._add(batches, at)
            self._db.executemany("INSERT INTO due VALUES(?, ?)", [(name, id_) for name in names for id_ in numbers])
        self.waiting.update(dict.fromkeys(names, sum(batch.spans for batch in batches)))
        return [StoredBatch(number, batch) for number, batch in zip(numbers, batches, strict=True)]

    def _add(self, batches: Sequence[Batch], at: float) -> range:
        # Numbers are never reused, unlike SQLite's own, because a deleted request may still be on its way.
        numbers = range(self._next, self._next + len(batches))
        rows = [(number, at, batch.spans, batch.body) for number, batch in zip(numbers, batches, strict=True)]
        self._db.executemany("INSERT INTO request VALUES(?, ?, ?, ?)", rows)
        self._next = numbers.stop
        return numbers

    @property
    def undecided(self) -> int:
        """Return the number of spans of undecided traces; this reads nothing from the file."""
        return self._held.total()

    def held(self, trace_id: str) -> list[Batch]:
        """Return the requests of an undecided trace."""
        query = "SELECT body, spans FROM held JOIN request ON id = request WHERE trace_id = ? ORDER BY id"
        return [Batch(*row) for row in self._db.execute(query, (trace_id,))]

    def release(self, trace_id: str, destinations: Iterable[str]) -> list[Batch]:
        """Make the held requests of a trace due to destinations, and return them."""
        names = list(destinations)
        with transaction(self._db):
            query = "SELECT request, body, spans FROM held JOIN request ON id = request WHERE trace_id = ?"
            rows: list[tuple[int, bytes, int]] = self._db.execute(query, (trace_id,)).fetchall()
            if rows:
                self._db.executemany(
                    "INSERT INTO due VALUES(?, ?)", [(name, number) for name in names for number, _, _ in rows]
                )
                self._db.execute("DELETE FROM held WHERE trace_id = ?", (trace_id,))
        del self._held[trace_id]
        self.waiting.update(dict.fromkeys(names, sum(spans for _, _, spans in rows)))
        return [Batch(body, spans) for _, body, spans in rows]

    def discard(self, trace_id: str) -> None:
        """Delete the held requests of a trace."""
        with transaction(self._db):
            held = "SELECT request FROM held WHERE trace_id = ?"
            self._db.execute(f"DELETE FROM request WHERE id IN ({held})", (trace_id,))  # noqa: S608  # a constant
            self._db.execute("DELETE FROM held WHERE trace_id = ?", (trace_id,))
        del self._held[trace_id]

    def take(self, destination: str, max_spans: int, max_bytes: int) -> list[StoredBatch]:
        """Return the oldest requests that are due: at least one if there is any, more up to the limits."""
        if not self.waiting[destination]:
            return []
        oldest, spans, size = list[StoredBatch](), 0, 0
        query = "SELECT id, body, spans FROM due JOIN request ON id = request WHERE destination = ? ORDER BY request"
        with contextlib.closing(self._db.execute(query, (destination,))) as rows:
            for number, body, count in rows:
                if number in self._delivered[destination] or number in self._skipped[destination]:
                    continue
                spans, size = spans + count, size + len(body)
                if oldest and (spans > max_spans or size > max_bytes):
                    break
                oldest.append(StoredBatch(number, Batch(body, count)))
        return oldest

    def acknowledge(self, destination: str, done: Sequence[StoredBatch]) -> None:
        """Remove delivered requests of a destination; if the disk is full, they are skipped from now on."""
        delivered = self._delivered[destination]
        delivered.update(stored.id for stored in done)
        self.waiting[destination] -= sum(stored.batch.spans for stored in done)
        try:
            with transaction(self._db):
                self._db.executemany(
                    "DELETE FROM due WHERE destination = ? AND request = ?", [(destination, id_) for id_ in delivered]
                )
                self._db.executemany(_UNREFERENCED, [(number,) for number in delivered])
        except sqlite3.OperationalError:
            return  # the next call tries again
        delivered.clear()

    def skip(self, destination: str, stored: StoredBatch) -> None:
        """Leave a request of a destination to the next process that opens the file."""
        self._skipped[destination].add(stored.id)
        self.waiting[destination] -= stored.batch.spans

    def drop(self, size: int, but: set[int]) -> Counter[str]:
        """Delete the oldest requests of ``size`` bytes except for ``but``; return the lost spans by destination."""
        numbers, dropped = list[int](), 0
        with contextlib.closing(self._db.execute("SELECT id, length(body) FROM request ORDER BY id")) as rows:
            for number, length in rows:
                if dropped >= size or len(numbers) >= _DROP_AT_ONCE:
                    break
                if number not in but:
                    numbers.append(number)
                    dropped += length
        return self._drop(numbers)

    def drop_before(self, at: float, but: set[int]) -> Counter[str]:
        """Delete requests that were added before ``at``, except for ``but``; return the lost spans by destination."""
        query = "SELECT id FROM request WHERE at < ? ORDER BY id LIMIT ?"
        return self._drop([number for (number,) in self._db.execute(query, (at, _DROP_AT_ONCE)) if number not in but])

    def _drop(self, numbers: list[int]) -> Counter[str]:
        lost: Counter[str] = Counter()
        if not numbers:
            return lost
        marks = ",".join(map(str, numbers))
        due = f"SELECT destination, sum(spans) FROM due JOIN request ON id = request WHERE id IN ({marks}) GROUP BY 1"  # noqa: S608  # numbers
        held = f"SELECT name, sum(spans) FROM held JOIN request ON id = request CROSS JOIN destination WHERE durable < 2 AND id IN ({marks}) GROUP BY 1"  # noqa: S608, E501  # numbers
        due_lost: dict[str, int] = dict(self._db.execute(due))
        held_lost: dict[str, int] = dict(self._db.execute(held))
        with transaction(self._db):
            for table, column in (("due", "request"), ("held", "request"), ("request", "id")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})")  # noqa: S608  # constants, numbers
        self.waiting.subtract(due_lost)
        if held_lost:
            self._count()
        lost.update(due_lost)
        lost.update(held_lost)
        return lost

    def compact(self) -> None:
        """Return free space to the disk."""
        if self._one("PRAGMA freelist_count") > _FREE_PAGES:
            # `execute` makes only one step of a statement without a result, and a step frees one page.
            self._db.executescript("PRAGMA incremental_vacuum")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _one(self, query: str) -> int:
        return self._db.execute(query).fetchone()[0]


def locked_in_time(descriptor: int, seconds: float) -> bool:
    """Lock an open file or directory within a time; return whether it is locked.

    A file system that has no locks excludes no other process, and counts as locked.
    """
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        except OSError:
            return True
        else:
            return True
    return False
