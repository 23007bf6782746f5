"""Streams of a session's events as Server-Sent Events (HTML standard), starting after any event number.

A reader takes its position in the feed, replays the log, then follows the feed, leaving out events that it has sent.
Events that the log no longer has are reported by a ``gap`` event. A reader that is too slow gets a ``dropped`` event,
and reconnects with the number of its last event.

Not sse-starlette: its pings come from a task of their own, between any two writes, so one could land inside an event
that is written in pieces. Without its pings it would only replace `EventStream`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from host_client.store.base import Root, Store, StoreError

from ._events import DroppedData, GapData, own_json
from ._feed import Feed, FrameBatch
from ._tasks import cancelled_at_end

HEARTBEAT = b": heartbeat\n\n"
RETRY = b"retry: 1000\n\n"
PIECE = 256 * 1024
"""Maximum size of one write, and of events read from the log at a time; a larger event is read alone."""
TOO_SLOW = "the reader is too slow"
STORE_AWAY = "the log cannot be read at the moment"

_logger = logging.getLogger(__name__)


def frame(data: bytes, number: int | None = None) -> bytes:
    """Return an event's JSON, which has no newline, in the format of Server-Sent Events."""
    return b"data: %b\n\n" % data if number is None else b"id: %d\ndata: %b\n\n" % (number, data)


def pieces(data: bytes) -> Iterator[bytes]:
    """Split bytes into pieces of at most `PIECE` bytes."""
    if len(data) <= PIECE:  # nearly always
        yield data
        return
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Times in seconds: ``heartbeat`` of silence before a heartbeat is sent, ``patience`` for one write to a reader."""

    heartbeat: float = 15.0
    patience: float = 30.0


class Reader:
    """The source of one reader's stream; close it with `close`. ``last`` is the number of the last event sent."""

    def __init__(self, feed: Feed, store: Store, session_id: str, root: Root, after: int, pace: Pace) -> None:
        self.last = after
        self._feed = feed
        self._position = feed.enter()
        self._store = store
        self._session_id = session_id
        self._root = root
        self._pace = pace

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the bytes of the stream, until the session ends or the reader is asked to reconnect."""
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    for piece in pieces(chunk):
                        yield piece
        except StoreError as error:
            _logger.warning("session %s: a reader is asked to reconnect later: %s", self._session_id, error)
            yield self._live(DroppedData(reason=STORE_AWAY, after=self.last))

    async def _chunks(self) -> AsyncGenerator[bytes]:
        yield RETRY
        async for chunk in self._caught_up():
            yield chunk
        if await self._is_over():
            return
        while True:
            batch = self._feed.since(self._position)
            if batch is None:
                yield self._live(DroppedData(reason=TOO_SLOW, after=self.last))
                return
            self._position = batch.position
            if self._follows(batch):
                if batch.body:
                    yield batch.body
            else:
                async for chunk in self._new(batch):
                    yield chunk
            if self._feed.ended or any(each.is_last for each in batch.frames):
                return
            if not await self._feed.grown(self._position, self._pace.heartbeat):
                yield HEARTBEAT

    def close(self) -> None:
        """Leave the feed."""
        self._feed.leave()

    async def _is_over(self) -> bool:
        """Return whether the session is closed and its last event has been sent."""
        stored = await self._store.get(self._session_id)
        return stored is None or (stored.state.is_closed and self.last >= stored.state.last_event_id)

    async def _caught_up(self) -> AsyncGenerator[bytes]:
        """Yield the rest of the log; later events are in the feed from the reader's position on."""
        while True:
            self._position = self._feed.position  # read before the log, so that no event is missed between the two
            chunk = await self._from_log()
            if chunk is None:
                return
            yield chunk

    async def _replayed(self, until: int) -> AsyncGenerator[bytes]:
        """Yield the log up to an event number."""
        while self.last < until and (chunk := await self._from_log()) is not None:
            yield chunk

    async def _from_log(self) -> bytes | None:
        """Return the log's next events, after a ``gap`` event if some are missing; None at the end of the log."""
        entries = await self._store.read(self._session_id, self.last, max_bytes=PIECE)
        if not entries:
            return None
        missing = GapData(first=self.last + 1, last=entries[0].id - 1)
        gap = self._live(missing) if missing.last >= missing.first else b""
        self.last = entries[-1].id
        return gap + b"".join(frame(entry.data, entry.id) for entry in entries)

    def _follows(self, batch: FrameBatch) -> bool:
        """Return whether a batch's events follow the last one without a gap; if so, advance `last` past them."""
        last = self.last
        for each in batch.frames:
            if each.before != last:
                return False
            last = last if each.id is None else each.id
        self.last = last
        return True

    async def _new(self, batch: FrameBatch) -> AsyncGenerator[bytes]:
        """Yield those events of a batch that were not sent yet; read missing ones from the log."""
        for each in batch.frames:
            if each.id is None:
                if each.after >= self.last:
                    yield each.data
            elif each.id > self.last:
                async for chunk in self._replayed(until=each.id - 1):
                    yield chunk
                if each.id > self.last:
                    self.last = each.id
                    yield each.data

    def _live(self, data: GapData | DroppedData) -> bytes:
        return frame(own_json(data, self._root, time.time()))


class EventStream(Response):
    """The HTTP response that sends a reader's stream until it ends or the client leaves or is too slow."""

    media_type = "text/event-stream"

    def __init__(
        self, reader: Reader, *, headers: Mapping[str, str], patience: float, on_end: Callable[[str], None]
    ) -> None:
        """``on_end`` is called with the reason of the end: ``end``, ``gone``, ``failed`` or ``slow``."""
        super().__init__(None, 200, {"x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._reader = reader
        self._patience = patience
        self._on_end = on_end
        self._since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        late = False
        try:
            async with cancelled_at_end(sending, leaving):
                while not (sending.done() or leaving.done() or self._is_late()):
                    await asyncio.wait((sending, leaving), timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
                late = self._is_late() and not (sending.done() or leaving.done())
        finally:
            self._on_end("slow" if late else _outcome(sending))

    # One timer for the stream instead of one for each write; `_since` is the start time of the current write.

    def _left(self) -> float:
        """Return the seconds until the current write, or one that begins now, is late."""
        return self._patience if self._since is None else max(0.0, self._since + self._patience - time.monotonic())

    def _is_late(self) -> bool:
        """Return whether the current write takes too long; the client reads nothing, so no event can tell it."""
        return self._since is not None and time.monotonic() >= self._since + self._patience

    async def _send(self, send: Send) -> str:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        chunks = self._reader.chunks()
        try:
            async for chunk in chunks:
                self._since = time.monotonic()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await chunks.aclose()
        return "end"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _outcome(sending: asyncio.Future[str]) -> str:
    if not sending.done() or sending.cancelled():
        return "gone"
    if (error := sending.exception()) is not None:
        if not isinstance(error, OSError):  # the connection was lost during a write
            _logger.error("a stream of events failed", exc_info=error)
        return "failed"
    return sending.result()
