"""Claims stdin and stdout for the protocol and writes events without ever waiting for their reader."""

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
"""What may wait in memory for a slow reader before the journal takes over."""

STALL_SECONDS = 2.0
"""At the end of a run, how long a reader may take nothing before the runner leaves."""

_WRITE = 64 * 1024


def claim_stdio() -> tuple[int, int]:
    """Return private descriptors of stdin and stdout.

    From here on descriptor 0 is empty and descriptor 1 is stderr, for this process and its children:
    a stray ``print``, in a library or a tool, cannot break the stream of events.
    """
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.open(os.devnull, os.O_RDWR)  # it was closed, and is the lowest that is free
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return stdin, stdout


class StdoutWriter:
    """Writes lines to a descriptor from a thread of its own.

    What a pipe has room for is written at once: to wake the thread for it costs several times as much.
    The rest waits in memory, a bounded number of bytes. When the reader is too slow for that, the outlet
    falls behind: it then reads what it owes from the journal until it has caught up, so that nothing
    with a seq is lost and nothing piles up. Live-only lines are dropped meanwhile.
    """

    def __init__(self, fd: int, journal: Journal | None) -> None:
        self._fd = fd
        self._journal = journal
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._behind_from: int | None = None
        self._read_to = 0
        self._unjournaled: deque[bytes] = deque()
        self._room = _room_in(fd)
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
        """Take a line. ``offset`` is where it stands in the journal, None if it does not."""
        with self._wake:
            if self._broken or self._closing:
                return
            if offset is not None and offset < self._read_to:
                return  # read from the journal before it was handed over here
            if self._idle and len(line) <= _WRITE:
                if rest := self._what_does_not_fit(line):
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
        """Whether stdout is a pipe and nothing waits or is being written by the thread."""
        return self._room is not None and not self._writing and not self._queue and self._behind_from is None

    def _what_does_not_fit(self, line: bytes) -> bytes:
        """Write as much of a line as the pipe takes without waiting; return the rest of it."""
        assert self._room is not None
        done = 0
        # A pipe that can be written to takes PIPE_BUF without waiting. One whose reader left says so
        # too (POLLERR), now or only when it is written to: that is the thread's to find.
        with contextlib.suppress(BrokenPipeError):
            while done < len(line) and self._room.poll(0) == self._has_room:
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
        # The journal failed while the reader was slow: memory is all that is left, and it is bounded.
        if self._queued + len(line) > QUEUE_BYTES * 64:
            self.dropped += 1
            return
        self._unjournaled.append(line)
        self._queued += len(line)

    def close(self) -> bool:
        """Write out what is owed for as long as the reader takes it; return whether all was taken."""
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
            # The reader is gone for good; the journal still has it all.
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
        """Wait for something to write; return nothing when all is written and no more comes."""
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
        # Only whole lines: what comes after the switch back to the queue begins at a line's start.
        chunk = chunk[: chunk.rfind(b"\n") + 1] if self._behind_from + len(chunk) >= self._journal.size else chunk
        self._behind_from += len(chunk)
        self._read_to = self._behind_from
        if not chunk:
            self._behind_from = None
            self._queue, self._unjournaled = self._unjournaled, deque()
        return chunk


def _room_in(fd: int) -> select.poll | None:
    """Return what tells whether a pipe has room; None for what is no pipe, where that would say too little."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    room = select.poll()
    room.register(fd, select.POLLOUT)
    return room
