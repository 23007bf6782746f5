"""The loopback gateway, which keeps the model's key: the CLI gets a token that is valid for this run only.

It takes the CLI's requests on 127.0.0.1, replaces the token by the key, and streams the answers back. A process without
the token can learn and do nothing through it; a process with the token can ask the model within the budget, as the CLI
can. It runs on the runner's event loop and is imported only if it is configured.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple

import httpx2 as httpx
import uvicorn

from ._config import ConfigError
from ._metering import Meter, MeteredAnswer
from ._model_access import ModelAccess
from .contract.classify import BUDGET_SPENT
from .contract.credentials import API, BASE_URL, CREDENTIALS, REFUSED
from .contract.protocol import to_json

MAX_BODY = 32 * 1024 * 1024
"""Maximum bytes of a request's body, as in the Messages API."""
MAX_AT_ONCE = 32
"""Maximum number of concurrent requests, which bounds the cost beyond the budget; further ones wait."""

_MAX_HEAD = 64 * 1024
_CONNECT_SECONDS = 30.0
_PATHS = ("/v1/messages", "/v1/messages/count_tokens")
_BEARER = ("ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_CUSTOM = "ANTHROPIC_CUSTOM_HEADERS"
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"authorization", b"x-api-key", b"cookie", b"accept-encoding", b"expect"}
# Cookies and redirects concern the runner's connection, not the CLI.
_NOT_SENT_BACK = _HOP_BY_HOP | {b"set-cookie", b"location"}

_ASK_NO_MORE = (b"x-should-retry", b"false")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Credential(NamedTuple):
    """The model's key: the variable it is from, the headers that carry it, and the API's URL."""

    variable: str
    headers: dict[str, str]
    base_url: str

    def stands_in(self, value: bytes) -> bool:
        """Return whether a value contains the whole key."""
        return any(header.removeprefix("Bearer ").encode() in value for header in self.headers.values())


def credential(environ: Mapping[str, str]) -> Credential:
    """Return the key that the CLI would use; raise `ConfigError` if there is none."""
    name = next((name for name in CREDENTIALS if environ.get(name)), None)
    if name is None:
        raise ConfigError(f"AGENT_GATEWAY=on: no key to keep, set {', '.join(CREDENTIALS[:-1])} or {CREDENTIALS[-1]}")
    lines = environ.get(_CUSTOM, "").split("\n")
    headers = {
        header.strip(): value.strip() for header, colon, value in (line.partition(":") for line in lines) if colon
    }
    if name in _BEARER:
        headers["authorization"] = f"Bearer {environ[name]}"
    else:
        headers["x-api-key"] = environ[name]
    return Credential(name, headers, environ.get(BASE_URL) or API)


def forget_credentials(environ: MutableMapping[str, str]) -> None:
    """Remove the model's keys from an environment, so that no child process gets them."""
    for name in (*CREDENTIALS, _CUSTOM):
        environ.pop(name, None)


class Refusal(NamedTuple):
    """An error that the gateway itself answers, in the form of the API's errors."""

    status: int
    kind: str
    message: str
    is_final: bool = False
    """A retry cannot succeed."""


_NO_TOKEN = Refusal(401, "authentication_error", "this gateway accepts the run's own token only")
_NO_HOST = Refusal(403, "permission_error", "this gateway accepts its own address as Host only")
_NO_PATH = Refusal(404, "not_found_error", "this gateway passes on the Messages API only")
_NO_METHOD = Refusal(405, "invalid_request_error", "this gateway passes on POST only")
_TOO_LARGE = Refusal(413, "request_too_large", f"a request has at most {MAX_BODY} bytes")
_SPENT = Refusal(402, "billing_error", BUDGET_SPENT)
_UNREADABLE = Refusal(502, "api_error", "the model's answer is compressed, so its cost cannot be read")


class Gateway:
    """The gateway of one run, as an asynchronous context manager; the CLI gets its `url` and `token`."""

    def __init__(
        self,
        key: Credential,
        tell: Callable[[str], None],
        meter: Meter | None = None,
        access: ModelAccess | None = None,
    ) -> None:
        """Listen on a free port; ``tell`` logs each kind of refusal once, ``access`` explains failed connections."""
        self._key = key
        self._tell = tell
        self._meter = meter
        self._access = access
        self._told: set[str] = set()
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self.token = secrets.token_urlsafe(32)
        # The socket listens before requests are served, so that the CLI's first request waits and does not fail.
        self._socket = _listening()
        self._hosts = tuple(f"{name}:{self._socket.getsockname()[1]}".encode() for name in ("127.0.0.1", "localhost"))
        self.url = f"http://{self._hosts[0].decode()}"

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def start(self) -> None:
        """Begin to serve. A process that ends with its run need not stop the gateway."""
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # the CLI limits how long an answer may take
        self._upstream = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(), follow_redirects=False)
        config = uvicorn.Config(
            self._serve,
            log_level="critical",  # failures are logged by `tell`; an answer that is cut on purpose is not an error
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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listening in self._server.servers:
            listening.close()
        for connection in list(self._server.server_state.connections):
            connection.shutdown()
        for task in list(self._server.server_state.tasks):
            task.cancel()
        await self._upstream.aclose()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a CLI that uses this gateway, with its token in place of the keys."""
        env = dict(environ)
        forget_credentials(env)
        env[BASE_URL] = self.url
        env[self._key.variable] = self.token
        # The CLI would send other requests to other hosts, with the token as the key.
        env.setdefault("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = ",".join(filter(None, (env.get(name), "127.0.0.1")))
        return env

    # -- serving ----------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope)
        if refused := self._refusal(request):
            await self._refuse(refused, request, send)
        elif request.path == "/":
            await _whole(send, 200, b"")  # the CLI checks that the server is there before its first request
        else:
            await self._in_turn(request, receive, send)

    def _refusal(self, request: _Request) -> Refusal | None:
        """Return the refusal of a request that may not pass, else None. The token is compared in constant time."""
        if request.one(b"host") not in self._hosts:
            return _NO_HOST
        if request.path == "/":
            return None if request.method in ("GET", "HEAD") else _NO_METHOD
        if request.path not in _PATHS:
            return _NO_PATH
        if request.method != "POST":
            return _NO_METHOD
        if not secrets.compare_digest(request.token, self.token.encode()):
            return _NO_TOKEN
        return _TOO_LARGE if request.size > MAX_BODY else None

    async def _refuse(self, refused: Refusal, request: _Request, send: Send) -> None:
        if refused.message not in self._told:
            self._told.add(refused.message)
            self._tell(f"the gateway refused {request.method} {request.path[:100]}: {refused.message}")
        await _error(send, refused)

    async def _in_turn(self, request: _Request, receive: Receive, send: Send) -> None:
        async with self._free:
            if self._meter is not None and self._meter.exhausted:
                await self._refuse(_SPENT, request, send)
                return
            await self._forward(request, receive, send)

    async def _forward(self, request: _Request, receive: Receive, send: Send) -> None:
        """Send a request to the model and stream its answer back, until the caller disconnects."""
        body = _RequestBody(receive)
        exchange = _Exchange(request, body, send, self._meter)
        passing = asyncio.ensure_future(exchange.run(self._upstream, self._key))
        leaving = asyncio.ensure_future(body.left())
        try:
            await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not passing.done():
                exchange.abandoned = True
                if exchange.may_stop:
                    passing.cancel()
            await passing
        except asyncio.CancelledError:
            passing.cancel()
            if not leaving.done():
                raise  # the runner itself is ending
        except httpx.HTTPError as error:
            await self._failed(error, exchange, request, send)
        except _TooLargeError:
            await self._refuse(_TOO_LARGE, request, send)
        finally:
            leaving.cancel()
            if self._access is not None and exchange.answering:
                self._access.reached()

    async def _failed(self, error: httpx.HTTPError, exchange: _Exchange, request: _Request, send: Send) -> None:
        what = f"the model's API at {httpx.URL(self._key.base_url).host}: {type(error).__name__}"
        if exchange.answering:
            raise _CutError(what) from error  # the server then drops the CLI's connection too
        if self._access is not None and isinstance(error, httpx.ConnectError):
            await self._access.look()
            what = self._access.problem or what
        status = 504 if isinstance(error, httpx.TimeoutException) else 502
        is_final = self._access is not None and self._access.is_hopeless
        await self._refuse(Refusal(status, "api_error", what, is_final), request, send)


def _listening() -> socket.socket:
    # asyncio turns Nagle's algorithm off only for a socket with a protocol, which `socket.create_server` does not set.
    # With the algorithm, the end of each answer waits 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


class _TooLargeError(Exception):
    """A request's body without a declared length is longer than `MAX_BODY`."""


class _CutError(ConnectionError):
    """The model's answer ended before it was complete."""


class _Request:
    """The parts of a request that the gateway checks and passes on."""

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]

    def one(self, name: bytes) -> bytes:
        """Return a header's value; empty if it is absent or repeated."""
        found = [value for header, value in self.headers if header == name]
        return found[0] if len(found) == 1 else b""

    @property
    def token(self) -> bytes:
        return self.one(b"x-api-key") or self.one(b"authorization").removeprefix(b"Bearer ")

    @property
    def size(self) -> int:
        length = self.one(b"content-length")
        return int(length) if length.isdigit() else 0

    def sent_on(self, key: Credential) -> httpx.Headers:
        """Return the headers for the model's API: the CLI's without its token and connection headers, and the key."""
        headers = httpx.Headers([pair for pair in self.headers if pair[0] not in _NOT_SENT_ON])
        headers.update(key.headers)
        headers["accept-encoding"] = "identity"  # the cost is read from the answer's text
        return headers


class _RequestBody:
    """Reads a request's body and the disconnection of its sender from one stream of ASGI messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()
        self._left = False

    async def chunks(self) -> AsyncIterator[bytes]:
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left = True
                self._read.set()
                raise httpx.WriteError("the CLI disconnected before its request was complete")
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise _TooLargeError
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._read.set()

    async def left(self) -> None:
        """Wait until the sender has disconnected."""
        await self._read.wait()
        while not self._left:
            self._left = (await self._receive())["type"] == "http.disconnect"


class _Exchange:
    """Passes one request on to the model, and the answer back."""

    def __init__(self, request: _Request, body: _RequestBody, send: Send, meter: Meter | None) -> None:
        self._request = request
        self._body = body
        self._send = send
        self._meter = meter
        self._answer: MeteredAnswer | None = None
        self.answering = False
        self.abandoned = False

    @property
    def may_stop(self) -> bool:
        """Return whether it may be cancelled: with a budget, not before the cost of the input has been read."""
        return self._meter is None or (self._answer is not None and self._answer.begun)

    async def run(self, upstream: httpx.AsyncClient, key: Credential) -> None:
        url = httpx.URL(key.base_url.rstrip("/") + self._request.path, query=self._request.query or None)
        headers = self._request.sent_on(key)
        outgoing = upstream.build_request("POST", url, headers=headers, content=self._body.chunks())
        response = await upstream.send(outgoing, stream=True)
        try:
            await self._pass_on(response, key)
        finally:
            if self._meter is not None and self._answer is not None:
                self._meter.spent += self._answer.cost
            # The shield closes the connection also when this task is cancelled.
            await asyncio.shield(response.aclose())

    async def _pass_on(self, response: httpx.Response, key: Credential) -> None:
        if self._meter is not None:
            if response.headers.get("content-encoding", "identity") != "identity":
                await _error(self._send, _UNREADABLE)
                return
            self._answer = MeteredAnswer(response.headers.get("content-type", ""))
        headers = [
            (name, value)
            for name, value in response.headers.raw
            if name.lower() not in _NOT_SENT_BACK and not key.stands_in(value)
        ]
        if response.status_code in REFUSED:
            headers.append(_ASK_NO_MORE)
        self.answering = True
        await self._give({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for chunk in response.aiter_raw():
            if self._answer is not None:
                self._answer.feed(chunk)
            # This waits for a slow CLI, and so slows the model's API down.
            await self._give({"type": "http.response.body", "body": chunk, "more_body": True})
            if self.abandoned and self.may_stop:
                return
        if self._answer is not None:
            self._answer.end()
        await self._give({"type": "http.response.body", "body": b""})

    async def _give(self, message: MutableMapping[str, Any]) -> None:
        if not self.abandoned:
            await self._send(message)


async def _whole(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, refused: Refusal) -> None:
    error = {"type": "error", "error": {"type": refused.kind, "message": refused.message}}
    more = (_ASK_NO_MORE,) if refused.is_final else ()
    await _whole(send, refused.status, to_json(error), *more)
