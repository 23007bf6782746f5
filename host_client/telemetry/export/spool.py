"""Store spans until they are delivered: on disk, limited in size, and passed on from process to process.

Each process has files of its own in the spool's directory, with locks that end with the process; the files of dead
processes are taken over. If the disk fails, spans are held in memory, up to a limit. Beyond a limit the oldest spans
are dropped and counted. Delivery is at least once: a request that was taken and not acknowledged is taken again.

Spans that are due on disk are recorded (`SpanRecords`) after they were written and before they can be sent. If a
process was killed in between, the process that takes its file over records them, before another one can look for
records.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from host_client.telemetry.batch import Batch

from ._records import SpanRecords
from ._spool_file import (
    SpoolFile,
    StoredBatch,
    UnknownVersionError,
    is_corrupt,
    locked_in_time,
    remove,
    set_aside,
    spans_in_corrupt,
)
from .notices import Notices

MAX_BYTES = 256 * 1024 * 1024
MAX_MEMORY = 32 * 1024 * 1024
MAX_AGE = 7 * 86400.0
MAX_FILES = 16
"""Maximum number of files that one process takes over at a time."""

_WAL_SHARE = 6 * 1024 * 1024
"""Maximum size of the log that SQLite keeps beside each database."""

ADOPTION_SECONDS = 5.0
"""Maximum number of seconds that a round of upkeep waits while another process takes over files."""

_logger = logging.getLogger(__name__)


class OwnedFile(NamedTuple):
    """A file that this process owns, and the descriptor that holds its lock."""

    file: SpoolFile
    path: Path
    lock: int


class Parcel(NamedTuple):
    """A request that was taken, and the file that it stays in until it is acknowledged."""

    file: SpoolFile
    stored: StoredBatch

    @property
    def batch(self) -> Batch:
        """Return the request."""
        return self.stored.batch


class Spool:
    """Store spans until they are delivered. Safe for threads. Without a directory they are held in memory only.

    ``max_bytes`` limits the files of all processes that share the directory, although each may use a sixteenth of it.
    ``max_memory`` limits the bytes in memory, ``max_age`` the seconds that spans wait. ``now`` returns seconds since
    the epoch.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        max_bytes: int = MAX_BYTES,
        max_memory: int = MAX_MEMORY,
        max_age: float = MAX_AGE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_memory = max_memory
        self._max_age = max_age
        self._now = now
        self._lock = threading.RLock()
        self._notices = Notices(_logger)
        self._names: dict[str, bool] = {}
        self._places: list[OwnedFile] = []
        self._memory = SpoolFile(":memory:")
        self._under_way: defaultdict[SpoolFile, Counter[int]] = defaultdict(Counter)
        self._bytes_elsewhere = 0
        self._is_closed = False
        self._waiting_at_close: dict[str, int] = {}
        self._undecided_at_close: Counter[str] = Counter()
        self._passed_over: dict[Path, int] = {}
        self._dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._recorded_files: dict[Path, int] = {}
        """Files that were not taken over but whose spans are recorded, with the times of their last change."""
        self.faults: Counter[str] = Counter()
        """Numbers of faults: of the disk (``disk``), of the records (``records``), and corrupt files (``corrupt``)."""
        self._records = None if directory is None else SpanRecords(directory, self.faults, max_age=max_age, now=now)

    def register(self, destinations: Mapping[str, bool]) -> None:
        """Register the destinations of this process; the values say whether they are durable."""
        with self._lock:
            self._names = dict(destinations)
            self._memory.register(self._names)

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        """Store spans of an undecided trace, if there is a destination."""
        with self._lock:
            if not self._names or self._drop_if_closed(batches, self._names):
                return
            self._store(lambda file: file.hold(trace_id, batches, self._now()))

    def release(self, trace_id: str, destinations: Iterable[str]) -> None:
        """Make the held spans of a trace due to destinations."""
        names = tuple(destinations)
        if not names:
            self.discard(trace_id)
            return
        with self._lock:
            if self._is_closed:
                return
            for place in tuple(self._places):
                self._release(place, trace_id, names)
            self._memory.release(trace_id, names)

    def _release(self, place: OwnedFile, trace_id: str, names: tuple[str, ...]) -> None:
        try:
            self._record(place.file.release(trace_id, names), names)
        except sqlite3.DatabaseError as error:
            # The disk is full: the held spans can be read, and are due from memory.
            with contextlib.suppress(sqlite3.DatabaseError):
                self._memory.put(place.file.held(trace_id), names, self._now())
            self._failed(place, error)

    def discard(self, trace_id: str) -> None:
        """Delete the held spans of a trace."""
        with self._lock:
            if self._is_closed:
                return
            for place in tuple(self._places):
                with self._watched(place):
                    place.file.discard(trace_id)
            self._memory.discard(trace_id)

    def put(self, batches: Sequence[Batch], destinations: Iterable[str]) -> None:
        """Store spans that are due to destinations."""
        names = tuple(destinations)
        with self._lock:
            if not names or self._drop_if_closed(batches, names):
                return
            if self._store(lambda file: file.put(batches, names, self._now())):
                self._record(batches, names)

    def _record(self, batches: Sequence[Batch], names: Iterable[str]) -> None:
        """Record spans that are due on disk, if they are due to all durable destinations.

        The caller holds the lock, so they are not sent before they are recorded.
        """
        durable = _durable(self._names)
        if self._records is not None and set(durable) <= set(names):
            self._records.record(durable, (batch.body for batch in batches))

    def recorded(self, trace_id: str, span_ids: Sequence[str]) -> set[str]:
        """Return those spans of a trace that a process with the same durable destinations stored; ids are in hex."""
        return set() if self._records is None else self._records.known(_durable(self._names), trace_id, span_ids)

    def take(self, destination: str, *, max_spans: int, max_bytes: int) -> list[Parcel]:
        """Return the oldest requests that are due, up to the limits; they stay here until they are acknowledged."""
        with self._lock:
            if self._is_closed:
                return []
            for place in tuple(self._places):
                with self._watched(place):
                    if parcels := self._take(place.file, destination, max_spans, max_bytes):
                        return parcels
            return self._take(self._memory, destination, max_spans, max_bytes)

    def _take(self, file: SpoolFile, destination: str, max_spans: int, max_bytes: int) -> list[Parcel]:
        parcels = [Parcel(file, stored) for stored in file.take(destination, max_spans, max_bytes)]
        self._under_way[file].update(parcel.stored.id for parcel in parcels)
        return parcels

    def put_back(self, parcels: Sequence[Parcel]) -> None:
        """Put taken parcels back: they may be taken again, or dropped."""
        with self._lock:
            for parcel in parcels:
                under_way = self._under_way[parcel.file]
                under_way[parcel.stored.id] -= 1
                if under_way[parcel.stored.id] <= 0:
                    del under_way[parcel.stored.id]

    def acknowledge(self, destination: str, parcels: Sequence[Parcel]) -> None:
        """Remove parcels that a destination is done with. After `close` this does nothing, and they are sent again."""
        with self._lock:
            if self._is_closed:
                return
            self.put_back(parcels)
            for file in {parcel.file for parcel in parcels}:
                done = [parcel.stored for parcel in parcels if parcel.file is file]
                if file is self._memory:
                    file.acknowledge(destination, done)
                elif (place := self._place_of(file)) is not None:
                    with self._watched(place):
                        file.acknowledge(destination, done)
                        self._tidy(place)

    def split(self, destination: str, parcel: Parcel, pieces: Sequence[Batch]) -> list[Parcel]:
        """Replace a parcel by pieces of it, for one destination; return the pieces, which count as taken."""
        with self._lock:
            if self._is_closed:
                return []
            parcels: list[Parcel] = []

            def put(file: SpoolFile) -> None:
                parcels[:] = [Parcel(file, stored) for stored in file.put(pieces, (destination,), self._now())]
                self._under_way[file].update(piece.stored.id for piece in parcels)

            if self._store(put) or parcel.file is self._memory:
                self.acknowledge(destination, [parcel])
            else:
                # The pieces end with this process, and a recorded span must not: the next process sends the parcel.
                self.put_back([parcel])
                parcel.file.skip(destination, parcel.stored)
            return parcels

    def waiting(self) -> dict[str, int]:
        """Return the numbers of spans that are due, by destination; after `close`, the numbers at that time."""
        with self._lock:
            if self._is_closed:
                return dict(self._waiting_at_close)
            files = [*(place.file for place in self._places), self._memory]
            return {name: sum(file.waiting[name] for file in files) for name in self._names}

    def outlives(self, destination: str) -> bool:
        """Return whether the next process can deliver all spans that wait for a destination of this process."""
        with self._lock:
            is_on_disk = self._directory is not None and not self._memory.waiting[destination]
            return is_on_disk and self._names.get(destination, False)

    def left_undecided(self) -> Counter[str]:
        """Return the numbers of undecided spans that `close` left to the next process, by destination."""
        with self._lock:
            return Counter(self._undecided_at_close)

    def dropped(self) -> dict[str, Counter[str]]:
        """Return the numbers of spans that the spool dropped, by destination and reason."""
        with self._lock:
            return {name: Counter(reasons) for name, reasons in self._dropped.items()}

    def keep(self) -> bool:
        """Take over the files of dead processes, drop spans that are too old, and free disk space.

        Return whether files were looked for; they are not while another process takes files over for too long.
        """
        with self._lock:
            if self._is_closed:
                return False
            under_way = set(self._under_way[self._memory])
            self._count_dropped("too_old", self._memory.drop_before(self._now() - self._max_age, under_way))
        if self._directory is None or self._records is None:
            return True
        with _adoption(self._directory) as may_adopt:
            adopted = self._adopted(self._records) if may_adopt else []
        with self._lock:
            if self._is_closed:
                for place in adopted:
                    self._leave(place)
                return False
            self._places[:0] = adopted
            self._expire()
            self._bytes_elsewhere = self._bytes_of_others()
        return may_adopt

    def tidy(self) -> None:
        """Delete span records that are too old or too many."""
        if self._records is not None:
            self._records.tidy()

    def close(self) -> None:
        """Close the files, and delete empty ones. Spans that come later are dropped.

        Spans on disk stay for the next process, undecided ones too; spans in memory are counted as lost.
        """
        with self._lock:
            if self._is_closed:
                return
            self._waiting_at_close = self.waiting()
            self._is_closed = True
            lost = Counter(self._memory.waiting)
            held = Counter(dict.fromkeys(self._names, self._memory.undecided))
            self._memory.close()
            transient = [name for name, durable in self._names.items() if not durable]
            for place in tuple(self._places):
                with self._watched(place):
                    undecided = place.file.undecided
                    held.update(dict.fromkeys(transient, undecided))
                    self._undecided_at_close.update(dict.fromkeys(self._names.keys() - transient, undecided))
                    lost.update({name: place.file.waiting[name] for name in transient})
                if place in self._places:
                    self._leave(place)
            self._places.clear()
            if self._records is not None:
                self._records.close()
            self._count_dropped("closed", lost + held)
            for name, spans in lost.items():
                self._waiting_at_close[name] = self._waiting_at_close.get(name, 0) - spans
            if undecided := max(self._undecided_at_close.values(), default=0):
                _logger.info("%d spans of undecided traces stay in the telemetry spool for the next process", undecided)

    def _drop_if_closed(self, batches: Sequence[Batch], names: Iterable[str]) -> bool:
        """Count spans as dropped if the spool is closed; return whether it is."""
        if self._is_closed:
            self._count_dropped("closed", Counter(dict.fromkeys(names, sum(batch.spans for batch in batches))))
        return self._is_closed

    def _leave(self, place: OwnedFile) -> None:
        is_empty = False
        with contextlib.suppress(sqlite3.DatabaseError):
            is_empty = place.file.is_empty
        place.file.close()
        if is_empty:
            remove(place.path)
        os.close(place.lock)

    # -- writing -----------------------------------------------------------------------------------------

    def _store(self, write: Callable[[SpoolFile], object]) -> bool:
        """Write to the disk, or to memory if that fails, and drop the oldest spans beyond the limits.

        Return whether the disk has them.
        """
        if (place := self._own()) is not None:
            try:
                write(place.file)
            except sqlite3.DatabaseError as error:
                self._failed(place, error)
            else:
                self._notices.forget("disk")
                self._drop_excess()
                return True
        write(self._memory)
        while (excess := self._memory.used - self._max_memory) > 0:
            lost = self._memory.drop(excess, set(self._under_way[self._memory]))
            if not lost:
                break
            self._count_dropped("memory_full", lost)
        return False

    def _own(self) -> OwnedFile | None:
        """Return the file to write to, a new one if needed; None if there is no directory or the disk fails."""
        if self._places and not self._is_shared(self._places[-1]):
            return self._places[-1]
        if self._directory is None or self._is_closed:
            return None
        try:
            place = _created(self._directory)
            place.file.register(self._names)
        except (OSError, sqlite3.DatabaseError) as error:
            self._disk_failed(error)
            return None
        self._places.append(place)
        return place

    def _drop_excess(self) -> None:
        budget = self._max_bytes - min(self._max_bytes // 8 * 5, _WAL_SHARE)
        budget = max(budget - self._bytes_elsewhere, budget // 16)
        for place in tuple(self._places):
            with self._watched(place):
                while (excess := sum(other.file.used for other in self._places) - budget) > 0:
                    lost = place.file.drop(excess, set(self._under_way[place.file]))
                    if not lost:
                        break
                    self._count_dropped("spool_full", lost)

    def _expire(self) -> None:
        before = self._now() - self._max_age
        for place in tuple(self._places):
            with self._watched(place):
                self._count_dropped("too_old", place.file.drop_before(before, set(self._under_way[place.file])))
                place.file.compact()
                self._tidy(place)

    def _tidy(self, place: OwnedFile) -> None:
        """Close a file that is no longer needed; the last file is the one that is written to."""
        if self._is_shared(place):
            is_done = not self._is_of_use(place.file)
        else:
            is_done = place is not self._places[-1] and place.file.is_empty
        if is_done:
            self._places.remove(place)
            self._leave(place)

    def _is_shared(self, place: OwnedFile) -> bool:
        """Return whether a file has spans of a dead process for destinations that this process does not have."""
        return any(spans > 0 and name not in self._names for name, spans in place.file.waiting.items())

    def _is_of_use(self, file: SpoolFile) -> bool:
        return any(file.waiting[name] > 0 for name in self._names)

    def _count_dropped(self, reason: str, lost: Counter[str]) -> None:
        for name, spans in lost.items():
            if spans > 0:
                self._dropped[name][reason] += spans
                self._notices.warn(
                    f"{name} {reason}", "telemetry for %s was dropped: %s", name.partition("#")[0], reason
                )

    # -- failures ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watched(self, place: OwnedFile) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._failed(place, error)

    def _failed(self, place: OwnedFile, error: sqlite3.DatabaseError) -> None:
        if is_corrupt(error) and place in self._places:
            self._places.remove(place)
            held = dict.fromkeys(self._names, place.file.undecided)
            self._count_dropped("corrupt", place.file.waiting + Counter(held))
            place.file.close()
            self._set_aside(place.path)
            os.close(place.lock)
        else:
            self._disk_failed(error)

    def _disk_failed(self, error: Exception) -> None:
        self.faults["disk"] += 1
        self._notices.warn(
            "disk",
            "the telemetry spool %s cannot be written (%s): spans are held in memory, at most %d MiB, "
            "and do not outlive this process",
            self._directory,
            error,
            self._max_memory // 2**20,
        )

    def _set_aside(self, path: Path) -> None:
        self.faults["corrupt"] += 1
        aside = path.with_suffix(".corrupt")
        _logger.warning("the telemetry spool's file %s is corrupt; it was renamed to %s", path, aside.name)
        set_aside(path)
        if self._records is not None:
            self._records.forget_all()

    def _place_of(self, file: SpoolFile) -> OwnedFile | None:
        return next((place for place in self._places if place.file is file), None)

    # -- dead processes ----------------------------------------------------------------------------------

    def _adopted(self, records: SpanRecords) -> list[OwnedFile]:
        """Take over files of dead processes and return them, opened. The caller does not hold the spool's lock."""
        assert self._directory is not None
        adopted: list[OwnedFile] = []
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.glob("*.db")):
                if len(adopted) + len(self._places) >= MAX_FILES:
                    self._record_only(path, records)
                    continue
                if path in self._passed_over and self._passed_over[path] == _written_at(path):
                    continue
                if (place := self._taken_over(path, records)) is None:
                    continue
                if self._is_of_use(place.file) or not self._is_shared(place):
                    adopted.append(place)
                else:
                    self._pass_over(place)
        return adopted

    def _record_only(self, path: Path, records: SpanRecords) -> None:
        """Record the spans of a dead process's file, and leave the file to a later round or another process."""
        if self._recorded_files.get(path) == _written_at(path) or (lock := _try_lock(path)) is None:
            return
        try:
            # Errors are handled when the file is taken over.
            with contextlib.suppress(sqlite3.DatabaseError, UnknownVersionError):
                with contextlib.closing(SpoolFile(str(path))) as file:
                    file.take_over()
                    _record_all(file, records)
                self._recorded_files[path] = _written_at(path)
        finally:
            os.close(lock)

    def _pass_over(self, place: OwnedFile) -> None:
        """Leave a file without spans for this process's destinations to other processes."""
        with contextlib.suppress(sqlite3.DatabaseError):
            place.file.drop_before(self._now() - self._max_age, set())
        self._leave(place)
        self._passed_over[place.path] = _written_at(place.path)

    def _taken_over(self, path: Path, records: SpanRecords) -> OwnedFile | None:
        lock = _try_lock(path)
        if lock is None:
            return None
        try:
            file = SpoolFile(str(path))
            try:
                file.take_over()
                _record_all(file, records)
                file.register(self._names)
            except BaseException:
                file.close()
                raise
        except UnknownVersionError:
            _logger.info("the telemetry spool's file %s was written by a later version, and is left alone", path)
        except sqlite3.DatabaseError as error:
            if is_corrupt(error):
                # If nothing can be read, at least one span is lost, because an empty file would have been deleted.
                lost = spans_in_corrupt(str(path)) or Counter(dict.fromkeys(self._names, 1))
                with self._lock:
                    self._count_dropped("corrupt", lost)
                self._set_aside(path)
            else:
                self._disk_failed(error)
        else:
            return OwnedFile(file, path, lock)
        os.close(lock)
        return None

    def _bytes_of_others(self) -> int:
        """Return the size of other processes' files in bytes."""
        assert self._directory is not None
        ours = {place.path.name for place in self._places}
        total = 0
        with contextlib.suppress(OSError):
            for path in self._directory.glob("*.db*"):
                if path.name.removesuffix("-wal") not in ours:
                    total += path.stat().st_size
        return total


def _record_all(file: SpoolFile, records: SpanRecords) -> None:
    """Record the spans of a dead process's file, which may have been killed before it recorded the last of them.

    The caller has not yet registered the destinations of this process. Requests that one destination has received were
    recorded before they were sent, and those of a yet earlier process may be for other destinations: neither is still
    due to all.
    """
    destinations = file.durable()
    for bodies in file.due_to_all():
        records.record(destinations, bodies)


def _durable(names: Mapping[str, bool]) -> list[str]:
    return [name for name, durable in names.items() if durable]


@contextlib.contextmanager
def _adoption(directory: Path) -> Generator[bool]:
    """Keep other processes from taking over files of a directory meanwhile; yield whether that was possible in time.

    So the spans of all files that were taken over before the block are recorded in it.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # there is no directory yet, and so no files
        yield True
        return
    try:
        yield locked_in_time(descriptor, ADOPTION_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
        os.close(descriptor)


def _created(directory: Path) -> OwnedFile:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = directory.stat()
    if about.st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to another user")
    if about.st_mode & 0o077:
        directory.chmod(0o700)
    path = directory / f"spans-{os.getpid()}-{uuid.uuid4().hex[:8]}.db"
    lock = _try_lock(path)
    if lock is None:
        raise OSError(f"{path} is locked by another process")
    try:
        # SQLite creates its further files with the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return OwnedFile(SpoolFile(str(path)), path, lock)
    except BaseException:
        remove(path)
        os.close(lock)
        raise


def _try_lock(path: Path) -> int | None:
    """Lock a file of the spool; return the descriptor that holds the lock, None if another process has it.

    The lock is a file beside the database: SQLite's own locks end when any descriptor of the database is closed.
    """
    lock = path.with_suffix(".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have deleted it meanwhile, and a lock on a deleted file excludes no other process.
        if os.fstat(descriptor).st_ino == lock.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _written_at(path: Path) -> int:
    """Return the time of a file's last change in nanoseconds, 0 if another process has deleted the file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
