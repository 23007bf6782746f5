"""One thread that has a SQLite file to itself and does all work on it. What waits is committed together.

A commit costs many times what a row does, and waking a thread too, and a service of many sessions appends often. So
what may wait is handed over every `LINGER_SECONDS` at most, together with all that came meanwhile; what somebody waits
for goes at once and takes it along. Whatever has come in while one transaction was committed makes up the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ._sqlite_file import connect, lock, make_folders
from .base import StoreError, settle

MAX_BATCH = 256
"""Pieces of work in one transaction; those that came together are not parted."""

LINGER_SECONDS = 0.02
"""Little more than a frame of a screen: what comes within it is seen at the same moment anyway."""

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Done = Callable[[Any, Exception | None], None]


@dataclass(eq=False, slots=True)
class _Job:
    """A piece of work; ``done`` runs in the event loop with its result, or with what it raised."""

    work: Work[Any]
    done: Done
    result: Any = None
    error: Exception | None = None


class SqliteThread:
    """Work on the file, for the tasks of one event loop; ``alone`` keeps other processes that ask for it away."""

    def __init__(self, path: Path, *, alone: bool) -> None:
        self._path = path
        self._alone = alone
        self._jobs: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._pending: list[_Job] = []
        self._waiting: list[Callable[[], None]] = []
        self._due: asyncio.TimerHandle | None = None
        self._handed_over = 0.0
        self._thread: threading.Thread | None = None
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None

    # -- in the event loop --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Lock and open the file; raise `StoreError`."""
        if self._thread is not None:
            raise StoreError(f"{self._path} is open already")
        loop = asyncio.get_running_loop()
        # Not waited for at the interpreter's end: whoever forgets to close loses nothing that was committed.
        self._thread = threading.Thread(target=self._main, args=(loop,), name="sandspan-store", daemon=True)
        self._thread.start()
        try:
            await self.run(lambda _: None)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Do what waits, then close the file and let go of it."""
        if self._thread is not None:
            self._hand_over()
            thread, self._thread = self._thread, None
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def run(self, work: Work[T], then: Callable[[], None] | None = None) -> T:
        """Do a piece of work, then ``then``, and return its result; see `submit`.

        Both are done also when the caller is cancelled meanwhile.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: Exception | None) -> None:
            if error is None and then is not None:
                try:
                    then()
                except Exception as fault:  # of ours, told to who waits for this one
                    error = fault
            settle(future, error, result)

        self.submit(work, done)
        return await future

    def submit(self, work: Work[Any], done: Done, *, may_wait: bool = False) -> None:
        """Do a piece of work in a transaction; ``done`` is called once that is committed. Raise `StoreError` if closed.

        What it raises undoes what it did and nothing else. It may be done twice, the first time undone, if it or what
        shares its transaction fails. The order is that of the calls, also where one ``may_wait`` for a moment.
        """
        if self._thread is None:
            raise StoreError(f"{self._path} is closed")
        if may_wait:
            self._pending.append(_Job(work, done))
            self._linger()
        else:
            self._collect()
            self._pending.append(_Job(work, done))
            self._hand_over()

    def before(self, submits: Callable[[], None]) -> None:
        """Call what submits work that may wait, right before work is handed over: so it knows of all that came."""
        self._waiting.append(submits)
        self._linger()

    def _linger(self) -> None:
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(self._handed_over + LINGER_SECONDS, self._hand_over)

    def _collect(self) -> None:
        waiting, self._waiting = self._waiting, []
        for submits in waiting:
            try:
                submits()
            except Exception:  # a fault of ours: the others must go on
                _logger.exception("what was to be handed over is not")

    def _hand_over(self) -> None:
        """Give the thread all that waits."""
        if self._due is not None:
            self._due.cancel()
            self._due = None  # first: what is collected may ask for another time
        self._collect()
        if self._pending:
            self._handed_over = asyncio.get_running_loop().time()
            self._jobs.put(self._pending)
            self._pending = []

    # -- in the thread ------------------------------------------------------------------------------------

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        ended = False
        while not ended:
            jobs, ended = self._next()
            self._do(jobs)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(_report, jobs)
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _next(self) -> tuple[list[_Job], bool]:
        """Wait for work; return all that there is, and whether it is the last."""
        jobs: list[_Job] = []
        more = self._jobs.get()
        while more is not None:
            jobs += more
            if len(jobs) >= MAX_BATCH:
                return jobs, False
            try:
                more = self._jobs.get_nowait()
            except Empty:
                return jobs, False
        return jobs, True

    def _do(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            connection = self._connected()
            if not _do_all(connection, jobs):
                _do_each(connection, jobs)
        except (sqlite3.Error, OSError, StoreError) as error:
            # Closed, as a connection is not to be trusted after an I/O error; what was begun is undone with it.
            self._disconnect()
            if len(jobs) > 1:  # what was too large for the disk must not take the others with it
                for job in jobs:
                    self._do([job])
            else:
                jobs[0].error = error if isinstance(error, StoreError) else self._failure(error)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            make_folders(self._path)
            if self._alone and self._lock is None:
                self._lock = lock(self._path)
            self._connection = connect(self._path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # it is not used any more
                self._connection.close()
            self._connection = None

    def _failure(self, error: sqlite3.Error | OSError) -> StoreError:
        advice = "make room on its disk" if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL else ""
        return StoreError("; ".join(filter(None, (f"{self._path} cannot be used: {error}", advice))))


def _do_all(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> bool:
    """Do all in one transaction; return False where one of them raised, and nothing was done. SQLite's errors pass."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for job in jobs:
            job.result, job.error = job.work(connection), None
    except sqlite3.Error:
        raise
    except Exception:  # raised again by `_do_each`, where it concerns its own job alone
        connection.execute("ROLLBACK")
        return False
    connection.execute("COMMIT")
    return True


def _do_each(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
    """Do all in one transaction that each can leave; for when one is known to fail, as savepoints cost."""
    connection.execute("BEGIN IMMEDIATE")
    for job in jobs:
        job.error = None
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except sqlite3.Error:
            raise
        except Exception as error:  # raised again where it is waited for
            connection.execute("ROLLBACK TO job")
            job.error = error
        connection.execute("RELEASE job")
    connection.execute("COMMIT")


def _report(jobs: Sequence[_Job]) -> None:
    """Let those who wait go on."""
    for job in jobs:
        try:
            job.done(job.result, job.error)
        except Exception:  # a fault of ours: the others must go on
            _logger.exception("what was to follow a piece of work on the store failed")
