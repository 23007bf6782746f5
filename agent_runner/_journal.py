"""The journal: a file that holds every event with a seq, appended before the event is written to stdout.

A reader that lost the stream continues from the journal, and a slow reader is served from it. The writer holds a lock
on the file while it lives, so that a follower can detect that the runner has died.
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
    """The journal cannot be opened; the message says why."""


class RunnerGoneError(Exception):
    """The journal has no ``end`` event, and its writer has died."""


class Journal:
    """An append-only file of encoded events."""

    def __init__(self, path: str | None) -> None:
        """Open a new journal; without a path, an unlinked temporary file."""
        self.error: str | None = None
        self.size = 0
        self._fd = _open_new(path) if path is not None else _open_temporary()

    def append(self, line: bytes) -> int | None:
        """Append a line; return its offset, or None if the journal has failed, now or before."""
        if self.error is not None:
            return None
        offset = self.size
        try:
            done = 0
            while done < len(line):
                done += os.write(self._fd, line[done:] if done else line)
        except OSError as error:
            self.error = error.strerror or str(error)
            self._remove_partial_line(offset)
            return None
        self.size += len(line)
        return offset

    def _remove_partial_line(self, offset: int) -> None:
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            # Not fatal: readers ignore an incomplete last line.
            self.error = f"{self.error}; {error.strerror}"

    def read(self, offset: int) -> bytes:
        """Return a chunk of the journal that begins at an offset; empty at the end."""
        return os.pread(self._fd, _CHUNK, offset)

    def close(self) -> None:
        """Close the file, which releases the writer's lock."""
        os.close(self._fd)


def _open_new(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise JournalError(f"the journal {path} belongs to another account, which could change it: name a new file")
    if not _locked(fd):
        os.close(fd)
        raise JournalError(f"the journal {path} is in use by another runner")
    if os.fstat(fd).st_size:
        os.close(fd)
        raise JournalError(f"the journal {path} holds another run's events: name a new file")
    return fd


def _locked(fd: int) -> bool:
    """Take the writer's lock; retry for a moment, as a follower takes it briefly to detect the writer."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS / 10)  # there is no notification of a released lock
        else:
            return True


def _open_temporary() -> int:
    with tempfile.TemporaryFile(prefix="agent_runner_") as file:
        return os.dup(file.fileno())


def follow(path: str, after: int) -> Iterator[bytes]:
    """Yield the journal's lines with a seq above ``after``; wait for more until the ``end`` event.

    Raise `RunnerGoneError` if the writer died before the ``end`` event, and `JournalError` if there is no journal.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"cannot open the journal {path}: {error.strerror}") from error
    framer = LineFramer(MAX_LINE_BYTES)
    try:
        while True:
            # Checked before reading, so that everything a dead writer wrote is read.
            writer_is_gone = _writer_is_gone(fd)
            while chunk := os.read(fd, _CHUNK):
                for line in framer.feed(chunk):
                    seq, is_end = _seq_and_end(line)
                    if not isinstance(line, Oversized) and seq > after:
                        yield line + b"\n"
                    if is_end:
                        return
            if writer_is_gone:
                raise RunnerGoneError
            time.sleep(_POLL_SECONDS)  # there is no portable notification of a file that grows
    finally:
        os.close(fd)


def _writer_is_gone(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _seq_and_end(line: bytes | Oversized) -> tuple[int, bool]:
    """Return a line's seq, or 0 if it has none, and whether it is the ``end`` event."""
    if isinstance(line, Oversized):
        return 0, False
    try:
        event = decode_event(line)
    except ProtocolError:
        return 0, False
    return event.seq or 0, event.type == "end"
