"""The destination of a session's events: a bounded queue for the caller's loop, or an object of the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Accepted = TypeVar("Accepted", contravariant=True)

MAX_ITEMS = 1024
MAX_BYTES = 32 * 1024 * 1024


class Outlet(Protocol[Accepted]):
    """Accepts a session's events, up to a number and a size.

    A full outlet makes its writer wait; a closed one drops all items.
    """

    def offer(self, item: Accepted, size: int) -> bool:
        """Try to add an item of ``size`` bytes without waiting; return False if the outlet is full."""
        ...

    async def put(self, item: Accepted, size: int) -> None:
        """Add an item of ``size`` bytes, waiting for room."""
        ...

    def finish(self) -> None:
        """End the items: no more will be added."""
        ...

    def forget(self) -> None:
        """Drop the items that have not been taken out yet."""
        ...

    def close(self) -> None:
        """Drop all further items, so that the writer never waits."""
        ...


class Mailbox(Generic[Item]):
    """A bounded queue as an `Outlet`; `get` takes the items out."""

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
        """Try to add an item without waiting; return False if the queue is full. A closed queue drops the item."""
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
        """Return the next item, waiting for it; None when no more will come."""
        while not self._items and not self._finished:
            await self._change()
        if not self._items:
            return None
        item, size = self._items.popleft()
        self._size -= size
        self._changed()
        return item

    def finish(self) -> None:
        """End the items: no more will be added."""
        self._finished = True
        self._changed()

    def forget(self) -> None:
        """Drop the items that are in the queue."""
        self._items.clear()
        self._size = 0
        self._changed()

    def close(self) -> None:
        """Drop all further items, so that the writer never waits."""
        self._closed = True
        self._changed()

    # Bare futures, as this runs for every event: asyncio.Condition's lock and queue cost three times as much.

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():  # cancelled
                waiter.set_result(None)
        self._waiters.clear()
