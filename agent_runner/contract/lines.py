"""Chunks of bytes to lines, bounded. Pure.

A stream's chunks are not lines: several lines come in one, and one comes in several. A line ends
at a line feed alone, as JSON text may hold any other line separator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Oversized:
    """A line that was longer than allowed and was thrown away; ``size`` in bytes."""

    size: int


class LineFramer:
    """Reassembles lines, holding at most ``limit`` bytes of an unfinished one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | Oversized]:
        """Yield each line the chunk completes, without its newline."""
        *complete, rest = chunk.split(b"\n")
        if complete:
            self._push(complete[0])
            yield self._take()
            for whole in complete[1:]:
                yield whole if len(whole) <= self._limit else Oversized(len(whole))
        self._push(rest)

    def flush(self) -> bytes | Oversized | None:
        """Take the unfinished last line, if there is any."""
        return self._take() if self._size else None

    def _push(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> bytes | Oversized:
        parts, size = self._parts, self._size
        self._parts, self._size = [], 0
        return Oversized(size) if size > self._limit else b"".join(parts)
