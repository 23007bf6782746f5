"""Where panels go on a grid: from left to right, a new line where one is full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Place(NamedTuple):
    """Top left corner and size, in cells."""

    x: int
    y: int
    width: int
    height: int


def placed(sizes: Iterable[tuple[int, int]], columns: int, top: int = 0) -> Iterator[Place]:
    """Return a place for every width and height."""
    x, y, line = 0, top, 0
    for width, height in sizes:
        if x + width > columns:
            x, y, line = 0, y + line, 0
        yield Place(x, y, width, height)
        x, line = x + width, max(line, height)
