"""Live streams of events, and the ways in which they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from starlette.types import Receive, Scope, Send

from .connect_protocol import RpcError, end_frame, message_frame
from .processes import Event, Subscription

ABORT = "stand_in.abort"
"""In the scope: resets the request's connection."""


class Ending(Enum):
    """A way to cut a stream."""

    RESET = auto()
    """The connection is reset."""
    EOF = auto()
    """The HTTP body ends, well formed, without an end frame."""
    LOST = auto()
    """The end frame says that the connection to the sandbox was lost, as when it is killed or paused."""
    DEADLINE = auto()
    """The end frame says that the time of the request is up."""


def lost() -> RpcError:
    """Return the proxy's error for a sandbox that ends during a call."""
    return RpcError("unavailable", "the connection to sandbox ended before the stream completed")


class EventStream:
    """One answer to Start or Connect: the events until the end, or until it is cut.

    ``pace`` is asked for the seconds to wait after each event; after ``keepalive`` seconds of silence an event says
    that the stream lives.
    """

    def __init__(
        self,
        first: Event,
        subscription: Subscription,
        *,
        leave: Callable[[], None],
        pace: Callable[[], float],
        keepalive: float,
    ) -> None:
        self._first, self._subscription, self._leave = first, subscription, leave
        self._pace, self._keepalive = pace, keepalive
        self._cut: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._is_silent = False

    def cut(self, ending: Ending) -> None:
        """End the stream now. A silent stream shows only a reset of its connection."""
        if not self._cut.done() and (ending is Ending.RESET or not self._is_silent):
            self._cut.set_result(ending)

    def silence(self) -> None:
        """Stay open without sending anything more, not even an end; output waits, and then blocks its writers."""
        self._is_silent = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = [(b"content-type", b"application/connect+json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        pumping = asyncio.ensure_future(self._pump(send))
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait([pumping, leaving, self._cut], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave()
            for task in (pumping, leaving):
                task.cancel()
            await asyncio.gather(pumping, leaving, return_exceptions=True)
        if self._cut.done():
            await end(self._cut.result(), scope, receive, send)

    async def _pump(self, send: Send) -> None:
        event: Event | None = self._first
        while event is not None:
            await send_body(send, message_frame({"event": event}))
            if pause := self._pace():
                await asyncio.sleep(pause)
            event = await self._next()
            if self._is_silent:
                await asyncio.Event().wait()  # until its reader leaves
        await send_body(send, end_frame(), more=False)

    async def _next(self) -> Event | None:
        try:
            return await asyncio.wait_for(self._subscription.get(), self._keepalive)
        except TimeoutError:
            return {"keepalive": {}}


async def end(ending: Ending, scope: Scope, receive: Receive, send: Send) -> None:
    """End a response whose body has begun."""
    match ending:
        case Ending.RESET:
            await abort(scope, receive)
        case Ending.EOF:
            await send_body(send, b"", more=False)
        case Ending.LOST:
            await send_body(send, end_frame(lost()), more=False)
        case Ending.DEADLINE:
            await send_body(send, end_frame(RpcError("deadline_exceeded", "context deadline exceeded")), more=False)


async def abort(scope: Scope, receive: Receive) -> None:
    """Reset the connection of a request."""
    reset: Callable[[], None] = scope[ABORT]
    reset()
    await _until_left(receive)


async def send_body(
    send: Callable[[dict[str, object]], Awaitable[None]] | Send, data: bytes, *, more: bool = True
) -> None:
    """Send a part of the response's body."""
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _until_left(receive: Receive) -> None:
    with contextlib.suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass
