"""Split a stream of bytes into lines of bounded length. Pure.

A line ends at a line feed only: JSON text may contain every other line separator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Oversized:
    """Stands for a line that was discarded because it was too long; ``size`` is in bytes."""

    size: int


class LineFramer:
    """Reassembles lines from chunks; keeps at most ``limit`` bytes of an incomplete line."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | Oversized]:
        """Yield each line that a chunk completes, without its line feed."""
        *complete, rest = chunk.split(b"\n")
        if complete:
            self._push(complete[0])
            yield self._take()
            for whole in complete[1:]:
                yield whole if len(whole) <= self._limit else Oversized(len(whole))
        self._push(rest)

    def flush(self) -> bytes | Oversized | None:
        """Return the incomplete last line and forget it; None if there is none."""
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
