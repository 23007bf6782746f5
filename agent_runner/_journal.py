"""The journal: every event with a seq, appended to a file before it is written to stdout.

A reader that lost the live stream goes on from the journal; a stalled reader is fed from it. The
writer holds a lock on the file for as long as it lives, which is how a follower tells a journal that
goes on from one whose runner died.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator

from .contract.lines import LineFramer, Oversized
from .contract.protocol import MAX_LINE_BYTES, ProtocolError, decode_event

_CHUNK = 256 * 1024
_POLL_SECONDS = 0.02
_LOCK_SECONDS = 0.25


class JournalError(OSError):
    """The journal cannot be opened; the message says what to do."""


class RunnerGoneError(Exception):
    """The journal ends without an ``end`` event, and nobody writes to it any more."""


class Journal:
    """An append-only file of lines."""

    def __init__(self, path: str | None) -> None:
        """Open a new journal; without a path an unlinked temporary file that ends with the process."""
        self.error: str | None = None
        self.size = 0
        self._fd = _open_new(path) if path is not None else _open_temporary()

    def append(self, line: bytes) -> int | None:
        """Write one line; return its offset, or None when the journal has failed, now or before."""
        if self.error is not None:
            return None
        offset = self.size
        try:
            done = 0
            while done < len(line):
                done += os.write(self._fd, line[done:] if done else line)
        except OSError as error:
            self.error = error.strerror or str(error)
            self._forget_half_a_line(offset)
            return None
        self.size += len(line)
        return offset

    def _forget_half_a_line(self, offset: int) -> None:
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            # Readers drop an unfinished last line by themselves.
            self.error = f"{self.error}; {error.strerror}"

    def read(self, offset: int) -> bytes:
        """Return some of what was written from an offset on; empty at the end."""
        return os.pread(self._fd, _CHUNK, offset)

    def close(self) -> None:
        """Give up the lock: no more will come."""
        os.close(self._fd)


def _open_new(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise JournalError(f"the journal {path} belongs to somebody else, who could forge it: name a new file")
    if not _locked(fd):
        os.close(fd)
        raise JournalError(f"the journal {path} is in use by another runner")
    if os.fstat(fd).st_size:
        os.close(fd)
        raise JournalError(f"the journal {path} holds another run's events: name a new file")
    return fd


def _locked(fd: int) -> bool:
    """Take the writer's lock; a follower that looks whether there is a writer holds it for a moment."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS / 10)  # a lock tells nobody when it is free
        else:
            return True


def _open_temporary() -> int:
    with tempfile.TemporaryFile(prefix="agent_runner_") as file:
        return os.dup(file.fileno())


def follow(path: str, after: int) -> Iterator[bytes]:
    """Yield the journal's lines with a seq above ``after``, waiting for more until ``end``.

    Raise `RunnerGoneError` where it ends without one, and `JournalError` when there is no journal.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error
    framer = LineFramer(MAX_LINE_BYTES)
    try:
        while True:
            # Asked before reading: what a writer wrote before it died is then read for certain.
            alone = _writer_is_gone(fd)
            while chunk := os.read(fd, _CHUNK):
                for line in framer.feed(chunk):
                    seq, last = _place(line)
                    if not isinstance(line, Oversized) and seq > after:
                        yield line + b"\n"
                    if last:
                        return
            if alone:
                raise RunnerGoneError
            time.sleep(_POLL_SECONDS)  # a file tells nobody when it grows
    finally:
        os.close(fd)


def _writer_is_gone(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _place(line: bytes | Oversized) -> tuple[int, bool]:
    """Return a line's seq (0 for none) and whether it is the ``end``."""
    if isinstance(line, Oversized):
        return 0, False
    try:
        event = decode_event(line)
    except ProtocolError:
        return 0, False
    return event.seq or 0, event.type == "end"
