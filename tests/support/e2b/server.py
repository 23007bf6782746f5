"""A server in a thread of its own, whose connections can be reset and whose port can be closed and opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from .streams import ABORT

WAIT_SECONDS = 30.0

T = TypeVar("T")


@contextlib.contextmanager
def loop_in_a_thread() -> Generator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="e2b-stand-in")
    thread.start()
    try:
        yield loop
    finally:
        # In its own thread: the block may end inside another loop.
        run_in(loop, loop.shutdown_asyncgens())
        run_in(loop, loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_SECONDS)
        loop.close()


def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Do something in the loop's thread and wait for it."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(WAIT_SECONDS)


class Server:
    """Serves an application on a port of the loopback interface."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = port

    async def listen(self) -> None:
        """Open the port: the same one each time."""
        config = uvicorn.Config(
            self._with_abort,
            host="127.0.0.1",
            port=self.port,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and reset every connection."""
        if self._server is None or self._serving is None:
            return
        for listening in self._server.servers:
            listening.close()
        for connection in list(self._server.server_state.connections):
            _reset(connection.transport)  # pyright: ignore
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None

    async def _with_abort(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT] = lambda: self._reset_from(scope["client"])
        await self._app(scope, receive, send)

    def _reset_from(self, client: tuple[str, int]) -> None:
        assert self._server is not None
        for connection in list(self._server.server_state.connections):
            if connection.client == client:  # pyright: ignore
                _reset(connection.transport)  # pyright: ignore


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection so that the other side sees a reset, not an end."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
