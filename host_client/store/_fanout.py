"""Delivery of notes and live events to the subscribers of this process.

A subscriber's queue is bounded: a slow subscriber misses the oldest live events. It misses no note, because a note that
follows the same note adds nothing and is not queued.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

from .base import Note

MAX_LIVE = 256
"""Maximum number of live events in one subscriber's queue."""


class Inbox(AsyncIterator[Note | bytes]):
    """One subscriber's queue of notes and live events, which ends with the store; ``only`` takes that note alone."""

    def __init__(self, only: Note | None = None) -> None:
        self._only = only
        self._items: deque[Note | bytes] = deque()
        self._live = 0
        self._closed = False
        self._wake = asyncio.Event()

    def note(self, note: Note) -> None:
        """Add a note unless it is queued already with no live event after it."""
        if self._only not in (None, note):
            return
        for item in reversed(self._items):
            if item is note:
                return
            if isinstance(item, bytes):
                break
        self._items.append(note)
        self._wake.set()

    def live(self, data: bytes) -> None:
        """Add a live event; drop the oldest one if there are too many."""
        if self._only is not None:
            return
        if self._live == MAX_LIVE:
            self._drop_oldest()
        self._items.append(data)
        self._live += 1
        self._wake.set()

    def close(self) -> None:
        """End the iteration after the queued items."""
        self._closed = True
        self._wake.set()

    async def __anext__(self) -> Note | bytes:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        item = self._items.popleft()
        self._live -= isinstance(item, bytes)
        return item

    def _drop_oldest(self) -> None:
        """Remove the oldest live event and merge the notes before and after it."""
        notes = self._leading_notes()
        self._items.popleft()
        self._live -= 1
        notes |= self._leading_notes()
        self._items.extendleft(reversed(notes))

    def _leading_notes(self) -> dict[Note, None]:
        notes: dict[Note, None] = {}
        while self._items and isinstance(first := self._items[0], Note):
            notes[first] = None
            self._items.popleft()
        return notes


class Fanout:
    """The subscribers of this process, by session."""

    def __init__(self) -> None:
        self._inboxes: dict[str, set[Inbox]] = {}

    @contextmanager
    def inbox(self, session_id: str, only: Note | None = None) -> Generator[Inbox]:
        """Yield the inbox of a new subscriber of a session."""
        inbox = Inbox(only)
        self._inboxes.setdefault(session_id, set()).add(inbox)
        try:
            yield inbox
        finally:
            inboxes = self._inboxes.get(session_id, set())
            inboxes.discard(inbox)
            if not inboxes:
                self._inboxes.pop(session_id, None)

    def note(self, session_id: str, *notes: Note) -> None:
        """Send notes to the subscribers of a session."""
        for inbox in self._inboxes.get(session_id, ()):
            for note in notes:
                inbox.note(note)

    def live(self, session_id: str, data: bytes) -> None:
        """Send a live event to the subscribers of a session."""
        for inbox in self._inboxes.get(session_id, ()):
            inbox.live(data)

    def close(self) -> None:
        """End all inboxes."""
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.close()
