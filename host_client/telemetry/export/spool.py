"""Spans that are not yet where they belong: durable, bounded, and handed on from process to process.

Every process has files of its own in the spool's directory, each with a lock that dies with the process; the
files of dead processes are taken over. What the disk does not take is held in memory, up to a bound. Where a
bound is met the oldest goes first, and is counted. Delivery is at least once: a request that was taken and
not acknowledged comes again.
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

from ._spool_file import SpoolFile, StoredBatch, UnknownVersionError
from .notices import Notices

MAX_BYTES = 256 * 1024 * 1024
MAX_MEMORY = 32 * 1024 * 1024
MAX_AGE = 7 * 86400.0
MAX_FILES = 16
"""Files of dead processes that one process has open at a time."""

_MAX_SET_ASIDE = 3
_WAL_SHARE = 6 * 1024 * 1024
"""Beside a database stands its log, which is bounded too."""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_logger = logging.getLogger(__name__)


class OwnedFile(NamedTuple):
    """A file of ours on the disk, and the descriptor that holds its lock."""

    file: SpoolFile
    path: Path
    lock: int


class Parcel(NamedTuple):
    """A request on its way, and the file it stays in until it is acknowledged."""

    file: SpoolFile
    stored: StoredBatch

    @property
    def batch(self) -> Batch:
        """The request."""
        return self.stored.batch


class Spool:
    """Safe for threads. Without a directory nothing outlives the process.

    ``max_bytes`` is the most on disk for all processes that share the directory, though each may have a sixteenth
    of it; ``max_memory`` the most held for want of a disk; ``max_age`` in seconds. ``now`` is the time since
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
        self._others = 0
        self._closed = False
        self._left: dict[str, int] = {}
        self._left_undecided: Counter[str] = Counter()
        self._passed_over: dict[Path, int] = {}
        self._dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.faults: Counter[str] = Counter()
        """How often the disk failed (``disk``), and how many files were corrupt (``corrupt``)."""

    def register(self, destinations: Mapping[str, bool]) -> None:
        """Name the destinations of this process, and whether what waits for each outlives the process."""
        with self._lock:
            self._names = dict(destinations)
            self._memory.register(self._names)

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        """Keep spans of a trace that is not decided; of no use where there is no destination."""
        with self._lock:
            if not self._names or self._gone(batches, self._names):
                return
            self._store(lambda file: file.hold(trace_id, batches, self._now()))

    def release(self, trace_id: str, destinations: Iterable[str]) -> None:
        """A trace is kept: what is held of it is due."""
        names = tuple(destinations)
        if not names:
            self.discard(trace_id)
            return
        with self._lock:
            if self._closed:
                return
            for place in tuple(self._places):
                self._release(place, trace_id, names)
            self._memory.release(trace_id, names)

    def _release(self, place: OwnedFile, trace_id: str, names: tuple[str, ...]) -> None:
        try:
            place.file.release(trace_id, names)
        except sqlite3.DatabaseError as error:
            # A full disk: what is held can be read, and goes on from memory.
            with contextlib.suppress(sqlite3.DatabaseError):
                self._memory.put(place.file.held(trace_id), names, self._now())
            self._failed(place, error)

    def discard(self, trace_id: str) -> None:
        """A trace is not kept."""
        with self._lock:
            if self._closed:
                return
            for place in tuple(self._places):
                with self._watched(place):
                    place.file.discard(trace_id)
            self._memory.discard(trace_id)

    def put(self, batches: Sequence[Batch], destinations: Iterable[str]) -> None:
        """Add spans that are due."""
        names = tuple(destinations)
        with self._lock:
            if not names or self._gone(batches, names):
                return
            self._store(lambda file: file.put(batches, names, self._now()))

    def take(self, destination: str, *, max_spans: int, max_bytes: int) -> list[Parcel]:
        """Return the oldest that is due; it stays until it is acknowledged."""
        with self._lock:
            if self._closed:
                return []
            for place in tuple(self._places):
                with self._watched(place):
                    if taken := self._taken(place.file, destination, max_spans, max_bytes):
                        return taken
            return self._taken(self._memory, destination, max_spans, max_bytes)

    def _taken(self, file: SpoolFile, destination: str, max_spans: int, max_bytes: int) -> list[Parcel]:
        taken = [Parcel(file, stored) for stored in file.take(destination, max_spans, max_bytes)]
        self._under_way[file].update(parcel.stored.id for parcel in taken)
        return taken

    def put_back(self, parcels: Sequence[Parcel]) -> None:
        """Parcels are no longer on their way."""
        with self._lock:
            for parcel in parcels:
                under_way = self._under_way[parcel.file]
                under_way[parcel.stored.id] -= 1
                if under_way[parcel.stored.id] <= 0:
                    del under_way[parcel.stored.id]

    def acknowledge(self, destination: str, parcels: Sequence[Parcel]) -> None:
        """A destination is done with parcels; after the end that is too late, and they come again."""
        with self._lock:
            if self._closed:
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
        """Put pieces in a parcel's place, for one destination; return them as taken."""
        with self._lock:
            if self._closed:
                return []
            parcels: list[Parcel] = []

            def put(file: SpoolFile) -> None:
                parcels[:] = [Parcel(file, stored) for stored in file.put(pieces, (destination,), self._now())]
                self._under_way[file].update(piece.stored.id for piece in parcels)

            self._store(put)
            self.acknowledge(destination, [parcel])
            return parcels

    def waiting(self) -> dict[str, int]:
        """Return how many spans are due, by destination of this process; after the end, what was left."""
        with self._lock:
            if self._closed:
                return dict(self._left)
            files = [*(place.file for place in self._places), self._memory]
            return {name: sum(file.waiting[name] for file in files) for name in self._names}

    def outlives(self, destination: str) -> bool:
        """Return whether what waits for a destination of this process is delivered by the next, if not by this one."""
        with self._lock:
            is_on_disk = self._directory is not None and not self._memory.waiting[destination]
            return is_on_disk and self._names.get(destination, False)

    def left_undecided(self) -> Counter[str]:
        """Return how many held spans the end left to the next process, by destination."""
        with self._lock:
            return Counter(self._left_undecided)

    def dropped(self) -> dict[str, Counter[str]]:
        """Return how many spans were dropped here, by destination and reason."""
        with self._lock:
            return {name: Counter(reasons) for name, reasons in self._dropped.items()}

    def keep(self) -> None:
        """Take over the files of dead processes, drop what is too old, give space back; called now and then."""
        with self._lock:
            if self._closed:
                return
            on_its_way = set(self._under_way[self._memory])
            self._dropped_as("too_old", self._memory.drop_before(self._now() - self._max_age, on_its_way))
            if self._directory is None:
                return
        found = self._found()
        with self._lock:
            if self._closed:
                for place in found:
                    self._leave(place)
                return
            self._places[:0] = found
            self._expire()
            self._others = self._bytes_of_others()

    def close(self) -> None:
        """Leave what is due to the next process; delete files that are empty. What comes later is dropped.

        Held spans stay for the next process too, which sends them; without a file they are lost, and counted so.
        """
        with self._lock:
            if self._closed:
                return
            self._left = self.waiting()
            self._closed = True
            lost = Counter(self._memory.waiting)
            held = Counter(dict.fromkeys(self._names, self._memory.undecided))
            self._memory.close()
            passing = [name for name, durable in self._names.items() if not durable]
            for place in tuple(self._places):
                with self._watched(place):
                    undecided = place.file.undecided
                    held.update(dict.fromkeys(passing, undecided))
                    self._left_undecided.update(dict.fromkeys(self._names.keys() - passing, undecided))
                    lost.update({name: place.file.waiting[name] for name in passing})
                if place in self._places:
                    self._leave(place)
            self._places.clear()
            self._dropped_as("closed", lost + held)
            for name, spans in lost.items():
                self._left[name] = self._left.get(name, 0) - spans
            if undecided := max(self._left_undecided.values(), default=0):
                _logger.info("%d spans of undecided traces stay in the telemetry spool for the next process", undecided)

    def _gone(self, batches: Sequence[Batch], names: Iterable[str]) -> bool:
        """Whether the spool is closed; what comes then is lost."""
        if self._closed:
            self._dropped_as("closed", Counter(dict.fromkeys(names, sum(batch.spans for batch in batches))))
        return self._closed

    def _leave(self, place: OwnedFile) -> None:
        is_empty = False
        with contextlib.suppress(sqlite3.DatabaseError):
            is_empty = place.file.is_empty
        place.file.close()
        if is_empty:
            _remove(place.path)
        os.close(place.lock)

    # Writing

    def _store(self, write: Callable[[SpoolFile], object]) -> None:
        """Write to the disk, or else to memory, and hold the bounds."""
        if (place := self._own()) is not None:
            try:
                write(place.file)
            except sqlite3.DatabaseError as error:
                self._failed(place, error)
            else:
                self._notices.forget("disk")
                self._bound()
                return
        write(self._memory)
        while (excess := self._memory.used - self._max_memory) > 0:
            lost = self._memory.drop(excess, set(self._under_way[self._memory]))
            if not lost:
                break
            self._dropped_as("memory_full", lost)

    def _own(self) -> OwnedFile | None:
        """Return the file that is written to."""
        if self._places and not self._is_shared(self._places[-1]):
            return self._places[-1]
        if self._directory is None or self._closed:
            return None
        try:
            place = _created(self._directory)
            place.file.register(self._names)
        except (OSError, sqlite3.DatabaseError) as error:
            self._disk_failed(error)
            return None
        self._places.append(place)
        return place

    def _bound(self) -> None:
        budget = self._max_bytes - min(self._max_bytes // 8 * 5, _WAL_SHARE)
        budget = max(budget - self._others, budget // 16)
        for place in tuple(self._places):
            with self._watched(place):
                while (excess := sum(other.file.used for other in self._places) - budget) > 0:
                    lost = place.file.drop(excess, set(self._under_way[place.file]))
                    if not lost:
                        break
                    self._dropped_as("spool_full", lost)

    def _expire(self) -> None:
        before = self._now() - self._max_age
        for place in tuple(self._places):
            with self._watched(place):
                self._dropped_as("too_old", place.file.drop_before(before, set(self._under_way[place.file])))
                place.file.compact()
                self._tidy(place)

    def _tidy(self, place: OwnedFile) -> None:
        """Let go of a file that has done its service; the last is the one that is written to."""
        if self._is_shared(place):
            is_done = not self._is_of_use(place.file)
        else:
            is_done = place is not self._places[-1] and place.file.is_empty
        if is_done:
            self._places.remove(place)
            self._leave(place)

    def _is_shared(self, place: OwnedFile) -> bool:
        """Whether a dead process left spans in it that are not for our destinations."""
        return any(spans > 0 and name not in self._names for name, spans in place.file.waiting.items())

    def _is_of_use(self, file: SpoolFile) -> bool:
        return any(file.waiting[name] > 0 for name in self._names)

    def _dropped_as(self, reason: str, lost: Counter[str]) -> None:
        for name, spans in lost.items():
            if spans > 0:
                self._dropped[name][reason] += spans
                self._notices.warn(
                    f"{name} {reason}", "telemetry for %s was dropped: %s", name.partition("#")[0], reason
                )

    # Trouble

    @contextlib.contextmanager
    def _watched(self, place: OwnedFile) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            self._failed(place, error)

    def _failed(self, place: OwnedFile, error: sqlite3.DatabaseError) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _CORRUPT and place in self._places:
            self._places.remove(place)
            self._dropped_as("corrupt", Counter(place.file.waiting))
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
        _logger.warning("the telemetry spool's file %s is corrupt: it is set aside as %s", path, aside.name)
        with contextlib.suppress(OSError):
            path.replace(aside)
            _remove(path)
            for old in sorted(path.parent.glob("*.corrupt"), key=lambda p: p.stat().st_mtime)[:-_MAX_SET_ASIDE]:
                old.unlink()

    def _place_of(self, file: SpoolFile) -> OwnedFile | None:
        return next((place for place in self._places if place.file is file), None)

    # Dead processes

    def _found(self) -> list[OwnedFile]:
        """Return files that no living process has, opened; they are tried one by one without the spool's lock."""
        assert self._directory is not None
        found: list[OwnedFile] = []
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.glob("*.db")):
                if len(found) + len(self._places) >= MAX_FILES:
                    break
                if path in self._passed_over and self._passed_over[path] == _written_at(path):
                    continue
                if (place := self._taken_over(path)) is None:
                    continue
                if self._is_of_use(place.file) or not self._is_shared(place):
                    found.append(place)
                else:
                    self._pass_over(place)
        return found

    def _pass_over(self, place: OwnedFile) -> None:
        """Leave a file that has nothing for us to those it is for."""
        with contextlib.suppress(sqlite3.DatabaseError):
            place.file.drop_before(self._now() - self._max_age, set())
        self._leave(place)
        self._passed_over[place.path] = _written_at(place.path)

    def _taken_over(self, path: Path) -> OwnedFile | None:
        lock = _try_lock(path)
        if lock is None:
            return None
        try:
            file = SpoolFile(str(path))
            try:
                file.take_over()
                file.register(self._names)
            except BaseException:
                file.close()
                raise
        except UnknownVersionError:
            _logger.info("the telemetry spool's file %s is of a later version, and left alone", path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _CORRUPT:
                self._set_aside(path)
            else:
                self._disk_failed(error)
        else:
            return OwnedFile(file, path, lock)
        os.close(lock)
        return None

    def _bytes_of_others(self) -> int:
        """Return what the files of other processes take up."""
        assert self._directory is not None
        ours = {place.path.name for place in self._places}
        total = 0
        with contextlib.suppress(OSError):
            for path in self._directory.glob("*.db*"):
                if path.name.removesuffix("-wal") not in ours:
                    total += path.stat().st_size
        return total


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
        raise OSError(f"{path} is taken")
    try:
        # SQLite gives its further files the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return OwnedFile(SpoolFile(str(path)), path, lock)
    except BaseException:
        _remove(path)
        os.close(lock)
        raise


def _try_lock(path: Path) -> int | None:
    """Return a descriptor with the lock of a spool's file; None if another process has it.

    The lock is a file beside the database: SQLite's own locks end when any descriptor of the database is closed.
    """
    lock = path.with_suffix(".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have deleted it meanwhile; a lock on a file without a name keeps nobody out.
        if os.fstat(descriptor).st_ino == lock.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _written_at(path: Path) -> int:
    """Return when a file was last written, in nanoseconds; 0 for one that another process has deleted."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    """Delete a spool's file with all that belongs to it, the lock last."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-journal"), path.with_suffix(".lock")):
        name.unlink(missing_ok=True)
