"""The HTTP server of the scripted model: ``POST /v1/messages`` on loopback, streaming as the real API does.

It runs in a thread with its own event loop, so synchronous tests, the demo and asyncio programs can all use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ._script import Reply, Script, ScriptedFailure, UnexpectedRequestError
from ._stream import encode_event, message_events

DEFAULT_MODEL = "claude-sonnet-4-5"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}

_logger = logging.getLogger(__name__)


class StreamCutError(ConnectionError):
    """A script's ``cut``: raised within a response to drop its connection halfway."""


@dataclass(frozen=True)
class SeenRequest:
    """One request that the model received: its conversation and the index of its reply, its headers and body."""

    conversation: str | None
    index: int
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedModel:
    """An Anthropic Messages API on 127.0.0.1 that answers from a script.

    Use it as a context manager; `url` is the value for ``ANTHROPIC_BASE_URL``. After the run, `unexpected` lists the
    requests without a reply in the script, and `requests` all requests.
    """

    def __init__(self, script: Script, *, port: int = 0) -> None:
        self.script = script
        self.requests: list[SeenRequest] = []
        self.unexpected: list[str] = []
        self._received = threading.Condition()
        self._failed: Counter[tuple[str, int]] = Counter()
        self._port = port
        self._stack = contextlib.ExitStack()
        self.url = ""

    def __enter__(self) -> ScriptedModel:
        # asyncio turns Nagle's algorithm off only for a socket with a protocol, which uvicorn's own has not.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        loop, ended = asyncio.new_event_loop(), asyncio.Event()

        def serve() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._serve(listening, ended))

        # A stream that the script cuts, or that the end of the server cancels, is not an error of the server.
        logging.getLogger("uvicorn.error").addFilter(_is_an_error)
        thread = threading.Thread(target=serve, name="scripted-model", daemon=True)
        thread.start()
        self._stack.callback(thread.join, timeout=5)
        self._stack.callback(loop.call_soon_threadsafe, ended.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def _serve(self, listening: socket.socket, ended: asyncio.Event) -> None:
        """Serve until the end of the block, then close all connections."""
        config = uvicorn.Config(self._app(), log_config=None, access_log=False, lifespan="off")
        config.load()
        # `uvicorn.Server.serve` would look for its end every 0.1 s, and then wait for its connections.
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        await ended.wait()
        for each in server.servers:
            each.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # lets the connections note their end, so that no cancelled request is answered
        tasks = list(server.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                # The CLI checks whether the base URL answers before it uses it.
                Route("/", _alive, methods=["GET", "HEAD"]),
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
            ]
        )

    async def _count_tokens(self, request: Request) -> Response:
        return JSONResponse({"input_tokens": len(await request.body()) // 4})

    async def _messages(self, request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(request, {}, f"the request is not JSON: {error}")
        try:
            name, index, reply = self.script.reply_to(body)
        except UnexpectedRequestError as error:
            return self._refuse(request, body, str(error))
        self._note(SeenRequest(name, index, dict(request.headers), body))
        failure = self._next_failure(name, index, reply)
        # Not in the stream, so that the response's head is delayed too.
        await _while_connected(request, reply.delay)
        if failure is not None and failure.status is not None:
            return _failed(failure)
        model = self.script.model or str(body.get("model") or DEFAULT_MODEL)
        message_id = f"msg_{name}_{index}"
        if not body.get("stream"):
            return JSONResponse(_whole_message(reply, message_id, model))
        return StreamingResponse(
            _stream(reply, failure, message_id, model),
            media_type="text/event-stream",
            headers={"request-id": f"req_{len(self.requests)}"},
        )

    def _note(self, seen: SeenRequest) -> None:
        with self._received:
            self.requests.append(seen)
            self._received.notify_all()

    def wait_for_requests(self, count: int, timeout: float) -> bool:
        """Wait until ``count`` requests have been received; return False if ``timeout`` seconds pass before."""
        with self._received:
            return self._received.wait_for(lambda: len(self.requests) >= count, timeout)

    def _next_failure(self, name: str, index: int, reply: Reply) -> ScriptedFailure | None:
        failures = reply.attempts()
        done = self._failed[name, index]
        if done >= len(failures):
            return None
        self._failed[name, index] += 1
        return failures[done]

    def _refuse(self, request: Request, body: dict[str, Any], why: str) -> Response:
        self.unexpected.append(why)
        self._note(SeenRequest(None, -1, dict(request.headers), body))
        _logger.error("scripted model: unexpected request: %s", why)
        return _error(400, f"scripted model: {why}")


def _is_an_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], StreamCutError | asyncio.CancelledError))


async def _alive(_request: Request) -> Response:
    return Response()


async def _while_connected(request: Request, seconds: float) -> None:
    """Wait for some seconds, or until the client disconnects."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = _ERROR_TYPES.get(status, "api_error")
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}
    return JSONResponse(body, status_code=status, headers=headers)


def _failed(failure: ScriptedFailure) -> Response:
    assert failure.status is not None
    headers = {"x-should-retry": "true"} if failure.retry_after is not None else {}
    if failure.retry_after is not None:
        headers["retry-after"] = f"{failure.retry_after:g}"
    return _error(failure.status, failure.message, headers)


async def _stream(reply: Reply, failure: ScriptedFailure | None, message_id: str, model: str) -> AsyncIterator[bytes]:
    events = list(message_events(reply, message_id=message_id, model=model))
    halfway = len(events) // 2
    for n, (wait, event) in enumerate(events):
        if failure is not None and n == halfway:
            if failure.cut:
                raise StreamCutError
            error = {"type": failure.error, "message": failure.message}
            yield encode_event({"type": "error", "error": error})
            return
        if wait:
            await asyncio.sleep(wait)
        yield encode_event(event)


def _whole_message(reply: Reply, message_id: str, model: str) -> dict[str, Any]:
    """Return the reply as one JSON message, for a request without ``stream``."""
    message: dict[str, Any] = {}
    content: list[dict[str, Any]] = []
    partial = ""
    for _, event in message_events(reply, message_id=message_id, model=model):
        match event:
            case {"type": "message_start"}:
                message = event["message"]
            case {"type": "content_block_start"}:
                content.append(dict(event["content_block"]))
                partial = ""
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta"} as delta}:
                partial += delta["partial_json"]
                content[-1]["input"] = msgspec.json.decode(partial) if partial else {}
            case {"type": "content_block_delta", "delta": delta}:
                field = str(delta["type"]).removesuffix("_delta")
                content[-1][field] += delta[field]
            case {"type": "message_delta"}:
                message = {**message, "stop_reason": event["delta"]["stop_reason"]}
                message["usage"] = {**message["usage"], **event["usage"]}
            case _:
                pass
    return {**message, "content": content}
