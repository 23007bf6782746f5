"""A bounded queue between the reader of a sandbox and the caller's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

MAX_ITEMS = 1024
MAX_BYTES = 32 * 1024 * 1024


class Mailbox(Generic[Item]):
    """Holds items up to a number and a size; a full one makes its writer wait, a closed one forgets."""

    def __init__(self) -> None:
        self._items: deque[tuple[Item, int]] = deque()
        self._size = 0
        self._finished = False
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, item: Item, size: int) -> None:
        """Add an item of ``size`` bytes, waiting for room."""
        async with self._changed:
            while not self._closed and self._items and self._is_full(size):
                await self._changed.wait()
            if not self._closed:
                self._items.append((item, size))
                self._size += size
                self._changed.notify_all()

    def _is_full(self, size: int) -> bool:
        return len(self._items) >= MAX_ITEMS or self._size + size > MAX_BYTES

    async def get(self) -> Item | None:
        """Take the next item; None when there will be no more."""
        async with self._changed:
            while not self._items and not self._finished:
                await self._changed.wait()
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._size -= size
            self._changed.notify_all()
            return item

    async def finish(self) -> None:
        """No more will be put."""
        async with self._changed:
            self._finished = True
            self._changed.notify_all()

    async def close(self) -> None:
        """Nobody takes any more: let the writer go on without waiting."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
