"""Receive spans on loopback, as OTLP over HTTP, from the CLI and from the processes that its tools start.

Any process of this machine can send to it, so what is in memory at a time is limited. Bodies are read and cleaned in a
thread that does nothing else: a program that sends much delays only programs that send too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ._asgi import DisconnectedError, Receive, Scope, Send, TooLargeError, answer_whole, read_body
from ._foreign_spans import JSON, PROTOBUF, ForeignSpan, UnreadableError, read_spans
from ._loopback import LoopbackServer

MAX_BODY = 2 * 1024 * 1024
"""Maximum bytes of a request's body, compressed and not. Exporters send at most 512 spans at a time."""

PATH = "/v1/traces"

_READ_SECONDS = 10.0
"""Maximum seconds in which a request's body must arrive."""

_MAX_AT_ONCE = 4
"""Maximum number of requests whose bodies are in memory; further ones wait."""


class OtlpReceiver:
    """An OTLP receiver on a free port of 127.0.0.1; other programs find it at `endpoint`."""

    def __init__(self) -> None:
        self.take: Callable[[list[ForeignSpan], int], Awaitable[None]] | None = None
        """Takes the spans of a request and the TCP port of the process that sent it and waits for the answer.

        Requests are refused with 503 while it is None, and exporters repeat those.
        """
        self._server = LoopbackServer(self._serve)
        self.port = self._server.port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._hosts = tuple(f"{name}:{self.port}".encode() for name in ("127.0.0.1", "localhost"))
        self._free = asyncio.Semaphore(_MAX_AT_ONCE)
        self._thread = ThreadPoolExecutor(1, "otlp-receiver")
        self._requests: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to serve. A process that ends with its run need not stop it."""
        await self._server.start()

    async def stop(self, patience: float) -> int:
        """Stop serving when all requests are taken, at most ``patience`` seconds; return how many were not."""
        pending = set(self._requests)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=patience)
        self._server.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)
        return len(pending)

    async def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the receiver's thread, in the order of the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if headers.get(b"host") not in self._hosts:  # E2B makes the ports of a sandbox reachable from outside
            await _refuse(send, 403, "this receiver accepts its own address as Host only")
        elif scope["path"] != PATH or scope["method"] != "POST":
            await _refuse(send, 404, f"this receiver takes POST {PATH} only")
        elif media_type not in (PROTOBUF, JSON):
            await _refuse(send, 415, "this receiver takes application/x-protobuf and application/json")
        elif self.take is None:
            await _refuse(send, 503, "this receiver does not take spans yet")
        else:
            task = asyncio.current_task()
            assert task is not None
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            await self._receive(scope, receive, send, headers.get(b"content-encoding", b""), media_type)

    async def _receive(self, scope: Scope, receive: Receive, send: Send, encoding: bytes, media_type: bytes) -> None:
        assert self.take is not None
        try:
            async with self._free:
                async with asyncio.timeout(_READ_SECONDS):
                    body = await read_body(receive, MAX_BODY)
                spans = await self.in_thread(read_spans, body, encoding, media_type, MAX_BODY)
            await self.take(spans, scope["client"][1])
        except TooLargeError:
            await _refuse(send, 413, f"a request has at most {MAX_BODY} bytes")
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive in {_READ_SECONDS:g} seconds")
        except UnreadableError as error:
            await _refuse(send, 400, f"the body cannot be read as OTLP: {error}")
        except DisconnectedError:
            pass
        else:
            # An empty answer means that all spans were accepted.
            await answer_whole(send, 200, b"{}" if media_type == JSON else b"", (b"content-type", media_type))


async def _refuse(send: Send, status: int, why: str) -> None:
    await answer_whole(send, status, why.encode(), (b"content-type", b"text/plain"))
