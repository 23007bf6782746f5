"""A buffer of one session's newest frames, shared by any number of readers. Each frame is encoded once.

Readers take frames from the shared buffer at their own position, so that no reader can slow the writer or another
reader. Older events are in the store. A feed without readers keeps no frames.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

MAX_FRAMES = 4096
MAX_BYTES = 8 * 1024 * 1024
"""Maximum lag of a reader, in frames and bytes, before it is dropped; a single larger frame is kept too."""


class Frame(NamedTuple):
    """An event in the format in which it is sent; ``is_last``: it closes the session.

    A frame with ``id`` None has one or several live events. They follow the event with the number ``after`` and are
    outdated once the next one has come.
    """

    id: int | None
    data: bytes
    is_last: bool = False
    after: int = 0

    @property
    def before(self) -> int:
        """The number of the event before the frame."""
        return self.after if self.id is None else self.id - 1


def pack(frame: Frame) -> bytes:
    """Encode a live frame for the other replicas."""
    return b"%d %b" % (frame.after, frame.data)


def unpack(data: bytes) -> Frame:
    """Decode a frame that `pack` encoded."""
    after, _, sent = data.partition(b" ")
    return Frame(None, sent, after=int(after))


class FrameBatch(NamedTuple):
    """Frames to send, the position after them, and their joined bytes."""

    frames: tuple[Frame, ...]
    position: int
    body: bytes


class Feed:
    """The newest frames of a session; a position is the number of frames that were added before it.

    ``last_id`` is the number of the newest event; at first, of the newest one in the store.
    """

    def __init__(self, last_id: int = 0) -> None:
        self.readers = 0
        self.ended = False
        """No more frames will come; readers must reconnect elsewhere."""
        self.last_id = last_id
        self._frames: deque[Frame] = deque()
        self._end = 0
        self._bytes = 0
        self._waiters: dict[asyncio.Future[bool], float] = {}
        """Futures of waiting readers, each with the time of its timeout."""
        self._alarm: asyncio.TimerHandle | None = None
        self._joined: tuple[int, FrameBatch] | None = None

    @property
    def position(self) -> int:
        """The position of the next frame."""
        return self._end

    def enter(self) -> int:
        """Add a reader; return the position from which it gets all further frames."""
        self.readers += 1
        return self._end

    def leave(self) -> None:
        """Remove a reader."""
        self.readers -= 1
        if not self.readers:
            self._frames.clear()
            self._bytes = 0
            self._joined = None
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    def add(self, *frames: Frame) -> None:
        """Add frames, without events that were added before and live events that are outdated."""
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
        if self.readers and self._end > before:  # a spurious wake-up would restart the heartbeat timers
            while len(self._frames) > MAX_FRAMES or (self._bytes > MAX_BYTES and len(self._frames) > 1):
                self._bytes -= len(self._frames.popleft().data)
            self._wake()

    def end(self) -> None:
        """End the streams of all readers."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            _wake_one(waiter, True)
        self._waiters.clear()

    def since(self, position: int) -> FrameBatch | None:
        """Return the frames from a position on; None if some of them were dropped."""
        if position == self._end:
            return FrameBatch((), position, b"")
        if self._joined is not None and self._joined[0] == position and self._joined[1].position == self._end:
            return self._joined[1]  # shared by all readers that keep up
        start = len(self._frames) - (self._end - position)
        if start < 0:
            return None
        frames = tuple(self._frames)[start:] if start else tuple(self._frames)
        batch = FrameBatch(frames, self._end, b"".join(frame.data for frame in frames))
        self._joined = (position, batch)
        return batch

    async def grown(self, position: int, seconds: float) -> bool:
        """Wait for frames after a position; return False if none came within some seconds."""
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

    # One timer for all waiting readers: a timer for each wait would cost more than sending the event.

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(at, self._on_alarm, loop)

    def _on_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the readers whose timeout has passed."""
        self._alarm = None
        now = loop.time()
        for waiter, until in self._waiters.items():
            if until <= now:
                _wake_one(waiter, False)
        if later := [until for until in self._waiters.values() if until > now]:
            self._set_alarm(loop, min(later))


def _wake_one(waiter: asyncio.Future[bool], has_grown: bool) -> None:
    if not waiter.done():
        waiter.set_result(has_grown)
