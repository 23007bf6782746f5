"""Measure the time that the gateway adds to the first byte of a model's answer: requests with and without it, in turn.

The model is a stand-in in a separate process that answers at once. The gateway runs alone on its loop, as in a run
whose agent waits for the model. The request's body is as large as the CLI's first one.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection

from agent_runner._credential import credential
from agent_runner._gateway import Gateway
from agent_runner._metering import Meter

from .support import Row, added, interleaved, progress, spread

REQUESTS = 300
WARM_UP = 20
BODY = json.dumps({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "x" * 80_000}]}).encode()
GOAL_MILLISECONDS = 2.0

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":1}}}\n\n'
_ANSWER = _HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_EVENT), _EVENT)


def _model(listening: socket.socket) -> None:
    """Answer every request on every connection."""

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while stream.readline():
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                stream.read(length)
                connection.sendall(_ANSWER)

    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _gateway(url: str, token: multiprocessing.Queue[tuple[str, str]]) -> None:
    async def serve() -> None:
        key = credential({"ANTHROPIC_API_KEY": "key", "ANTHROPIC_BASE_URL": url})
        gateway = Gateway(key, progress, Meter(1e9))
        await gateway.start()
        token.put((gateway.url, gateway.token))
        await asyncio.Event().wait()

    asyncio.run(serve())


class Client:
    """A connection that stays open between requests, as the CLI's does."""

    def __init__(self, url: str, token: str) -> None:
        self._connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        self._headers = {"x-api-key": token, "content-type": "application/json"}

    def milliseconds(self) -> float:
        """Return the time from sending a request to the first byte of the answer's body."""
        began = time.perf_counter()
        self._connection.request("POST", "/v1/messages", BODY, self._headers)
        response = self._connection.getresponse()
        assert response.status == 200 and response.read(1) == b"e"
        taken = time.perf_counter() - began
        response.read()
        return taken * 1000


@contextmanager
def both_ways() -> Generator[dict[str, Client]]:
    context = multiprocessing.get_context("spawn")
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    token = context.Queue()
    processes = [
        context.Process(target=_model, args=(listening,), daemon=True),
        context.Process(target=_gateway, args=(url, token), daemon=True),
    ]
    for process in processes:
        process.start()
    try:
        yield {"bare": Client(url, "key"), "ours": Client(*token.get(timeout=30))}
    finally:
        for process in processes:
            process.kill()
            process.join()
        listening.close()


def measure() -> list[Row]:
    with both_ways() as clients:
        for _ in range(WARM_UP):
            for client in clients.values():
                client.milliseconds()
        measured = interleaved(REQUESTS, {name: client.milliseconds for name, client in clients.items()})
    straight, through = (statistics.median(measured[name]) for name in ("bare", "ours"))
    more = added(measured)
    differences = [b - a for a, b in zip(measured["bare"], measured["ours"], strict=True)]
    return [
        Row(
            f"gateway, time to the first byte ({REQUESTS} pairs)",
            f"{straight:.2f} ms straight",
            f"{through:.2f} ms",
            f"{more:+.2f} ms ({spread(differences)})",
            f"< {GOAL_MILLISECONDS:g} ms",
            more < GOAL_MILLISECONDS,
        )
    ]
