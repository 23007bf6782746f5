"""Read requests and answer them by the ASGI protocol, for the servers of the runner on loopback."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLargeError(Exception):
    """A request's body is longer than is accepted."""


class DisconnectedError(ConnectionError):
    """The client disconnected before its request was complete."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return a request's whole body; raise `DisconnectedError`, or `TooLargeError` above ``limit`` bytes."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLargeError
        more = message.get("more_body", False)
    return b"".join(parts)


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the sender of a request, whose body was read, has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_whole(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    """Send a whole answer; ``more`` are headers that replace or follow the content type, which is JSON by default."""
    headers = {b"content-type": b"application/json", b"content-length": str(len(body)).encode(), **dict(more)}
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": body})
