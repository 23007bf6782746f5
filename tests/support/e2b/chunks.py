"""Cut the output of a process into data events, also within a line or a character."""

from __future__ import annotations

import random
from collections.abc import Iterable

from .processes import Chunking


def fixed_chunks(size: int) -> Chunking:
    """Return chunks of this number of bytes."""

    def cut(data: bytes) -> Iterable[bytes]:
        return [data[start : start + size] for start in range(0, len(data), size)]

    return cut


def random_chunks(seed: int, most: int = 100) -> Chunking:
    """Return chunks of 1 to ``most`` bytes, the same ones for the same seed and reads."""
    source = random.Random(seed)

    def cut(data: bytes) -> Iterable[bytes]:
        start = 0
        while start < len(data):
            end = start + source.randint(1, most)
            yield data[start:end]
            start = end

    return cut
