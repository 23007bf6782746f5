"""Serve an ASGI application over HTTP/1.1 on a free port of 127.0.0.1, on the runner's event loop."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import uvicorn

from ._asgi import AsgiApp

_MAX_HEAD = 64 * 1024
"""Maximum bytes of a request's line and headers."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class LoopbackServer:
    """A server that listens from its creation on, so that requests before `start` wait and do not fail."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._socket = _listening()
        self.port: int = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Begin to serve. A process that ends with its run need not stop it."""
        config = uvicorn.Config(
            self._app,
            log_level="critical",  # the application reports failures; an answer that is cut on purpose is not an error
            log_config=None,
            access_log=False,
            lifespan="off",
            interface="asgi3",
            http="h11",
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            h11_max_incomplete_event_size=_MAX_HEAD,
        )
        # `uvicorn.Server.serve` would also install signal handlers and a clock, and would delay the end.
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._socket])

    def stop(self) -> None:
        """Close the socket and the connections, and cancel the requests under way."""
        for listening in self._server.servers:
            listening.close()
        for connection in list(self._server.server_state.connections):
            connection.shutdown()
        for task in list(self._server.server_state.tasks):
            task.cancel()


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which programs ask loopback directly, and what they exempt already, and use no proxy."""
    given = f"{environ.get('NO_PROXY', '')},{environ.get('no_proxy', '')}"
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not any(environ.get(name) for name in _PROXIES) or "*" in names:
        return {}
    exempt = ",".join(dict.fromkeys([*names, "127.0.0.1"]))
    return {"NO_PROXY": exempt, "no_proxy": exempt}


def _listening() -> socket.socket:
    # asyncio turns Nagle's algorithm off only for a socket with a protocol, which `socket.create_server` does not set.
    # With the algorithm, the end of each answer waits 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening
