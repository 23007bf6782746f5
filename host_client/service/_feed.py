"""One session's newest frames, for any number of readers. Each frame is encoded once.

Readers pull: none has a queue of its own, and none can slow the writer or another reader. What is no longer here
stands in the store. A feed without readers keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

MAX_FRAMES = 4096
MAX_BYTES = 8 * 1024 * 1024
"""How far a reader may lag behind before it is dropped; a single larger frame is kept all the same."""


class Frame(NamedTuple):
    """One event as it is sent; ``is_last``: the session has been closed by it.

    ``id`` is None for live ones, of which there may be several in one; they come ``after`` the event of that number,
    and mean nothing once the next one has come.
    """

    id: int | None
    data: bytes
    is_last: bool = False
    after: int = 0

    @property
    def before(self) -> int:
        """The number of the event that it comes after."""
        return self.after if self.id is None else self.id - 1


def pack(frame: Frame) -> bytes:
    """Return a live frame as it is passed on to other replicas."""
    return b"%d %b" % (frame.after, frame.data)


def unpack(data: bytes) -> Frame:
    """Read what `pack` wrote."""
    after, _, sent = data.partition(b" ")
    return Frame(None, sent, after=int(after))


class FrameBatch(NamedTuple):
    """Frames to send, where the next ones begin, and the frames' bytes joined."""

    frames: tuple[Frame, ...]
    position: int
    body: bytes


class Feed:
    """Positions count all frames that ever came; they are this object's own and mean nothing elsewhere.

    ``last_id`` is the number up to which readers find everything in the store.
    """

    def __init__(self, last_id: int = 0) -> None:
        self.readers = 0
        self.ended = False
        """No more will come from here; readers go elsewhere."""
        self.last_id = last_id
        """The number of the newest event that came."""
        self._frames: deque[Frame] = deque()
        self._end = 0
        self._bytes = 0
        self._waiters: dict[asyncio.Future[bool], float] = {}
        """Each with the time at which it has waited long enough."""
        self._alarm: asyncio.TimerHandle | None = None
        self._joined: tuple[int, FrameBatch] | None = None

    @property
    def position(self) -> int:
        """Where the next frame will be."""
        return self._end

    def enter(self) -> int:
        """Count a reader in; return the position from which on it misses nothing."""
        self.readers += 1
        return self._end

    def leave(self) -> None:
        """Count a reader out."""
        self.readers -= 1
        if not self.readers:
            self._frames.clear()
            self._bytes = 0
            self._joined = None
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    def add(self, *frames: Frame) -> None:
        """Take the next frames; an event that came before is left out, and a live one that comes too late."""
        before = self._end
        for frame in frames:
            if frame.id is None:
                if frame.after < self.last_id:
                    continue
            elif frame.id <= self.last_id:
                continue
            else:
                self.last_id = frame.id
            self._end += 1
            if self.readers:
                self._frames.append(frame)
                self._bytes += len(frame.data)
        if self.readers and self._end > before:  # who is woken for nothing waits anew, and sends no heartbeat
            while len(self._frames) > MAX_FRAMES or (self._bytes > MAX_BYTES and len(self._frames) > 1):
                self._bytes -= len(self._frames.popleft().data)
            self._wake()

    def end(self) -> None:
        """Let every reader go."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            _tell(waiter, True)
        self._waiters.clear()

    def since(self, position: int) -> FrameBatch | None:
        """Return what came from a position on; None if some of it is no longer here."""
        if position == self._end:
            return FrameBatch((), position, b"")
        if self._joined is not None and self._joined[0] == position and self._joined[1].position == self._end:
            return self._joined[1]  # readers that keep up are all at the same place
        start = len(self._frames) - (self._end - position)
        if start < 0:
            return None
        frames = tuple(self._frames)[start:] if start else tuple(self._frames)
        batch = FrameBatch(frames, self._end, b"".join(frame.data for frame in frames))
        self._joined = (position, batch)
        return batch

    async def grown(self, position: int, seconds: float) -> bool:
        """Wait until there is more than up to a position; return False after so many seconds."""
        if self._end > position:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        until = self._waiters[waiter] = loop.time() + seconds
        if self._alarm is None or until < self._alarm.when():
            self._set_alarm(loop, until)
        try:
            return await waiter
        finally:
            self._waiters.pop(waiter, None)

    # One timer for all who wait, which mostly finds that they wait anew: one for each wait costs more than the event.

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(at, self._let_go, loop)

    def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake those who have waited long enough."""
        self._alarm = None
        now = loop.time()
        for waiter, until in self._waiters.items():
            if until <= now:
                _tell(waiter, False)
        if later := [until for until in self._waiters.values() if until > now]:
            self._set_alarm(loop, min(later))


def _tell(waiter: asyncio.Future[bool], has_grown: bool) -> None:
    if not waiter.done():
        waiter.set_result(has_grown)
