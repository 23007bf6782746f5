"""One thread that owns the SQLite file and does all work on it, in transactions that several calls share.

A commit costs many times what a row does, and so does waking the thread. Calls that may wait are therefore handed over
at most every `LINGER_SECONDS`; a call that may not wait goes at once and takes the waiting ones along. All work that
arrives while the thread commits goes into the next transaction.
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
from .base import StoreError

MAX_BATCH = 256
"""Jobs after which a transaction takes no more; jobs that were handed over together stay together."""

LINGER_SECONDS = 0.02
"""Minimum time between two hand-overs of jobs that may wait: little more than one frame of a screen."""

_logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


@dataclass(eq=False, slots=True)
class _Job:
    """A piece of work, the future of its caller, and a function for the event loop to call after the commit."""

    work: Work[Any]
    future: asyncio.Future[Any]
    then: Callable[[], None] | None
    result: Any = None
    error: Exception | None = None


class SqliteThread:
    """Runs work on a SQLite file for the tasks of one event loop; ``alone`` locks the file against other processes."""

    def __init__(self, path: Path, *, alone: bool) -> None:
        self._path = path
        self._alone = alone
        self._jobs: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._pending: list[_Job] = []
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
        # A daemon, so that a program that forgets to close the store can end; what was committed is safe.
        self._thread = threading.Thread(target=self._main, args=(loop,), name="sandspan-store", daemon=True)
        self._thread.start()
        try:
            await self.run(lambda _: None)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Finish all work that waits, then close and unlock the file."""
        if self._thread is not None:
            self._hand_over()
            thread, self._thread = self._thread, None
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def run(self, work: Work[T], then: Callable[[], None] | None = None, *, may_wait: bool = False) -> T:
        """Do work in a transaction and return its result once it is committed; raise `StoreError` if closed.

        Work is done in the order of the calls, also when the caller is cancelled meanwhile. If it raises, its own
        changes are undone and no others. It may be called twice, with the first call undone, when it or other work in
        its transaction fails. ``then`` is called in the event loop right after the commit.
        """
        if self._thread is None:
            raise StoreError(f"{self._path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending.append(_Job(work, future, then))
        if not may_wait:
            self._hand_over()
        elif self._due is None:
            self._due = loop.call_at(self._handed_over + LINGER_SECONDS, self._hand_over)
        return await future

    def _hand_over(self) -> None:
        """Give the thread all jobs that wait."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
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
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                loop.call_soon_threadsafe(_report, jobs)
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _next(self) -> tuple[list[_Job], bool]:
        """Wait for jobs; return all that are queued, and whether they are the last."""
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
        """Do jobs in one transaction, or each alone if that fails, and note the result or error of each."""
        if not jobs:
            return
        try:
            connection = self._connected()
            if not _do_all(connection, jobs):
                _do_each(connection, jobs)
        except BaseException as error:  # whatever it is: without the thread, callers would wait for ever
            # A connection is not to be trusted after an I/O error. Closing it undoes the transaction.
            self._disconnect()
            if len(jobs) > 1:  # a job that is too large for the disk must not fail the others
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
            with contextlib.suppress(sqlite3.Error):  # the connection is not used any more
                self._connection.close()
            self._connection = None

    def _failure(self, error: BaseException) -> StoreError:
        if not isinstance(error, sqlite3.Error | OSError):
            _logger.error("unexpected error in the thread of %s", self._path, exc_info=error)
            return StoreError(f"{self._path} cannot be used: unexpected {type(error).__name__}: {error}")
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return StoreError(f"{self._path} cannot be used: {error}{'; make room on its disk' if is_full else ''}")


def _do_all(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> bool:
    """Do all jobs in one transaction; return False, with nothing done, if one of them raised an error of its own.

    SQLite's errors are raised.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for job in jobs:
            job.result, job.error = job.work(connection), None
    except sqlite3.Error:
        raise
    except Exception:  # raised again in `_do_each`, where it fails its own job alone
        connection.execute("ROLLBACK")
        return False
    connection.execute("COMMIT")
    return True


def _do_each(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
    """Do all jobs in one transaction, each in a savepoint; used only after a failure, as savepoints cost time."""
    connection.execute("BEGIN IMMEDIATE")
    for job in jobs:
        job.error = None
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except sqlite3.Error:
            raise
        except Exception as error:  # raised again for the caller in `_report`
            connection.execute("ROLLBACK TO job")
            job.error = error
        connection.execute("RELEASE job")
    connection.execute("COMMIT")


def _report(jobs: Sequence[_Job]) -> None:
    """Call each job's ``then`` and give its result or error to its caller."""
    for job in jobs:
        if job.error is None and job.then is not None:
            try:
                job.then()
            except Exception as error:  # it must not keep the other callers waiting
                _logger.exception("the work on the store is done, but what follows it failed")
                job.error = error
        if job.future.done():  # cancelled
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)
