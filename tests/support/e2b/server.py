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
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .streams import ABORT

WAIT_SECONDS = 60.0

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
    """Run a function in the loop's thread and wait for it."""
    return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, WAIT_SECONDS), loop).result()


class Server:
    """Serves an application on a port of the loopback interface."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._state = ServerState()
        self._listening: asyncio.Server | None = None
        self.port = port

    async def listen(self) -> None:
        """Open the port, which is the same each time."""
        config = uvicorn.Config(
            self._with_abort,
            interface="asgi3",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            timeout_keep_alive=3600,
        )
        config.load()
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: H11Protocol(config=config, server_state=self._state, app_state={}), "127.0.0.1", self.port
        )
        self.port = self._listening.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and reset every connection."""
        assert self._listening is not None
        self._listening.close()
        for connection in self._connections():
            _reset(connection.transport)
        await asyncio.sleep(0)  # lets the protocols process the reset before their requests are cancelled
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    def _connections(self) -> list[H11Protocol]:
        return [connection for connection in self._state.connections if isinstance(connection, H11Protocol)]

    async def _with_abort(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT] = lambda: self._reset_from(scope["client"])
        # Only a closed port cancels a request, and then there is no client to answer.
        with contextlib.suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)

    def _reset_from(self, client: tuple[str, int]) -> None:
        for connection in self._connections():
            if connection.client == client:
                _reset(connection.transport)


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection so that the other side sees a reset, not an end."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
