"""Reserve stdin and stdout for the protocol, and write events without waiting for their reader."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import threading
import time
from collections import deque

from ._journal import Journal

QUEUE_BYTES = 1024 * 1024
"""Maximum bytes that wait in memory for a slow reader; later ones are read from the journal."""

STALL_SECONDS = 2.0
"""Seconds without progress of a reader after which the end of a run stops waiting for it."""

_WRITE = 64 * 1024


def claim_stdio() -> tuple[int, int]:
    """Return private descriptors of stdin and stdout.

    Afterwards descriptor 0 is empty and descriptor 1 is stderr, for this process and its children, so that the output
    of a library or a tool cannot get into the stream of events.
    """
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.open(os.devnull, os.O_RDWR)  # fd was closed, and is the lowest free descriptor
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return stdin, stdout


class StdoutWriter:
    """Writes lines to a descriptor without blocking the caller.

    A line that fits into the pipe is written at once, as waking the thread takes several times as long. Other lines
    wait in memory for the thread, up to `QUEUE_BYTES`. If the reader is slower than that, the writer is "behind": the
    thread reads the lines from the journal until it has caught up. So no line with a seq is lost, and memory is
    bounded. Lines without a seq are dropped while it is behind.
    """

    def __init__(self, fd: int, journal: Journal | None) -> None:
        self._fd = fd
        self._journal = journal
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._behind_from: int | None = None
        self._read_to = 0
        self._unjournaled: deque[bytes] = deque()
        self._poll = _poll_of(fd)
        self._has_room = [(fd, select.POLLOUT)]
        self._writing = False
        self._closing = False
        self._broken = False
        self._progress = 0
        self._wake = threading.Condition()
        self.dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="events", daemon=True)
        self._thread.start()

    def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
        """Take a line; ``offset`` is its place in the journal. A ``live`` line has no seq and may be dropped."""
        with self._wake:
            if self._broken or self._closing:
                return
            if offset is not None and offset < self._read_to:
                return  # the thread has read it from the journal already
            if self._idle and len(line) <= _WRITE:
                if rest := self._write_what_fits(line):
                    self._enqueue(rest)
                return
            if self._behind_from is None and self._queued + len(line) > QUEUE_BYTES and offset is not None:
                self._behind_from = offset
            if self._behind_from is not None:
                self._put_while_behind(line, offset, live)
            elif self._queued + len(line) > QUEUE_BYTES * 64:
                self.dropped += not live
            elif not (live and self._queued > QUEUE_BYTES // 2):
                self._enqueue(line)
            self._wake.notify()

    @property
    def _idle(self) -> bool:
        """Return whether stdout is a pipe and no line waits or is being written."""
        return self._poll is not None and not self._writing and not self._queue and self._behind_from is None

    def _write_what_fits(self, line: bytes) -> bytes:
        """Write as much of a line as fits into the pipe; return the rest."""
        assert self._poll is not None
        done = 0
        # A pipe that is ready takes PIPE_BUF bytes without blocking. If its reader is gone (POLLERR or
        # BrokenPipeError), the rest goes to the thread, which handles that.
        with contextlib.suppress(BrokenPipeError):
            while done < len(line) and self._poll.poll(0) == self._has_room:
                done += os.write(self._fd, line[done : done + select.PIPE_BUF])
        self._progress += done
        return line[done:]

    def _enqueue(self, line: bytes) -> None:
        self._queue.append(line)
        self._queued += len(line)
        self._wake.notify()

    def _put_while_behind(self, line: bytes, offset: int | None, live: bool) -> None:
        if offset is not None or live:
            return
        # The journal has failed while the writer is behind: the line waits in memory, within a limit.
        if self._queued + len(line) > QUEUE_BYTES * 64:
            self.dropped += 1
            return
        self._unjournaled.append(line)
        self._queued += len(line)

    def close(self) -> bool:
        """Write what waits while the reader makes progress; return whether everything was written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        seen, since = self._progress, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < STALL_SECONDS:
            self._thread.join(timeout=0.05)
            if self._progress != seen:
                seen, since = self._progress, time.monotonic()
        return not self._thread.is_alive() and not self._broken

    def _write_all(self) -> None:
        try:
            while chunk := self._next_chunk():
                for start in range(0, len(chunk), _WRITE):
                    self._write(chunk[start : start + _WRITE])
        except OSError:
            # The reader is gone; the journal has all events.
            with self._wake:
                self._broken = True
                self._queue.clear()
                self._unjournaled.clear()
        finally:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        while data:
            written = os.write(self._fd, data)
            self._progress += written
            data = data[written:]

    def _next_chunk(self) -> bytes:
        """Wait for data to write; return an empty chunk when everything is written and the writer is closed."""
        with self._wake:
            self._writing = False
            while True:
                if self._queue:
                    self._writing = True
                    chunk = b"".join(self._queue)
                    self._queue.clear()
                    self._queued = sum(map(len, self._unjournaled))
                    return chunk
                if self._behind_from is not None and (chunk := self._from_journal()):
                    self._writing = True
                    return chunk
                if self._queue:
                    continue
                if self._closing:
                    return b""
                self._wake.wait()

    def _from_journal(self) -> bytes:
        assert self._journal is not None and self._behind_from is not None
        chunk = self._journal.read(self._behind_from)
        # Only whole lines, as the first chunk from the queue afterwards begins with a new line.
        chunk = chunk[: chunk.rfind(b"\n") + 1] if self._behind_from + len(chunk) >= self._journal.size else chunk
        self._behind_from += len(chunk)
        self._read_to = self._behind_from
        if not chunk:
            self._behind_from = None
            self._queue, self._unjournaled = self._unjournaled, deque()
        return chunk


def _poll_of(fd: int) -> select.poll | None:
    """Return a poll object that reports whether a pipe has room, or None for other files."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll
