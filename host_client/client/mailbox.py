"""Where the events of a sandbox go: a bounded queue for the caller's loop, or what takes its place."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Taken = TypeVar("Taken", contravariant=True)

MAX_ITEMS = 1024
MAX_BYTES = 32 * 1024 * 1024


class Outlet(Protocol[Taken]):
    """Takes items up to a number and a size; a full one makes its writer wait, a closed one forgets."""

    def offer(self, item: Taken, size: int) -> bool:
        """Take an item of ``size`` bytes unless it would have to wait; return whether it need not."""
        ...

    async def put(self, item: Taken, size: int) -> None:
        """Take an item, waiting for room."""
        ...

    def finish(self) -> None:
        """No more will be put."""
        ...

    def forget(self) -> None:
        """Drop what was put and is not taken up yet."""
        ...

    def close(self) -> None:
        """Take no more: let the writer go on without waiting."""
        ...


class Mailbox(Generic[Item]):
    """An `Outlet` that somebody takes the items out of."""

    def __init__(self) -> None:
        self._items: deque[tuple[Item, int]] = deque()
        self._size = 0
        self._finished = False
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    async def put(self, item: Item, size: int) -> None:
        """Add an item of ``size`` bytes, waiting for room."""
        while not self.offer(item, size):
            await self._change()

    def offer(self, item: Item, size: int) -> bool:
        """Add an item unless it would have to wait; return whether it need not. Nobody gets what a closed one takes."""
        if self._closed:
            return True
        if self._items and (len(self._items) >= MAX_ITEMS or self._size + size > MAX_BYTES):
            return False
        self._items.append((item, size))
        self._size += size
        if self._waiters:
            self._changed()
        return True

    async def get(self) -> Item | None:
        """Take the next item; None when there will be no more."""
        while not self._items and not self._finished:
            await self._change()
        if not self._items:
            return None
        item, size = self._items.popleft()
        self._size -= size
        self._changed()
        return item

    def finish(self) -> None:
        """No more will be put."""
        self._finished = True
        self._changed()

    def forget(self) -> None:
        """Drop what was put and not taken."""
        self._items.clear()
        self._size = 0
        self._changed()

    def close(self) -> None:
        """Nobody takes any more: let the writer go on without waiting."""
        self._closed = True
        self._changed()

    # Bare futures: this is passed once an event, and a condition's lock and queue cost three times as much.

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():  # cancelled
                waiter.set_result(None)
        self._waiters.clear()
