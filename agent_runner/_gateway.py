"""The loopback gateway, which keeps the model's key: the CLI gets a token that is valid for this run only.

It takes the CLI's requests on 127.0.0.1, replaces the token by the key, and streams the answers back. A process without
the token can learn and do nothing through it; a process with the token can ask the model within the budget, as the CLI
can. It runs on the runner's event loop and is imported only if it is configured.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.request import getproxies

import httpx2 as httpx

from ._asgi import (
    DisconnectedError,
    Receive,
    Scope,
    Send,
    TooLargeError,
    answer_whole,
    read_body,
    wait_for_disconnect,
)
from ._credential import Credential, forget_credentials
from ._exchange import CANCELLED, MAX_BODY, CutError, Exchange, ModelRequest, Refusal, answer_error
from ._loopback import LoopbackServer, without_proxy
from ._metering import Meter
from ._model_access import ModelAccess
from ._observer import Observe, RequestObserver
from .contract.classify import BUDGET_SPENT, classify
from .contract.credentials import BASE_URL

MAX_AT_ONCE = 32
"""Maximum number of concurrent requests, which bounds the cost beyond the budget; further ones wait."""

_CONNECT_SECONDS = 30.0
_REACH_SECONDS = 3.0
_ASSUME_FIRST_PARTY = "_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL"
_MESSAGES = "/v1/messages"
_PATHS = (_MESSAGES, f"{_MESSAGES}/count_tokens")
_NO_TOKEN = Refusal(401, "authentication_error", "this gateway accepts the run's own token only")
_NO_HOST = Refusal(403, "permission_error", "this gateway accepts its own address as Host only")
_NO_PATH = Refusal(404, "not_found_error", "this gateway passes on the Messages API only")
_NO_METHOD = Refusal(405, "invalid_request_error", "this gateway passes on POST only")
_TOO_LARGE = Refusal(413, "request_too_large", f"a request has at most {MAX_BODY} bytes")
_SPENT = Refusal(402, "billing_error", BUDGET_SPENT)


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
        self.observe: Observe | None = None
        """Returns the observer of a new request."""
        self.meter = meter
        self.server = key.server
        self._key = key
        self._tell = tell
        self._access = access
        self._told: set[str] = set()
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self.token = secrets.token_urlsafe(32)
        self._server = LoopbackServer(self._serve)
        self._hosts = tuple(f"{name}:{self._server.port}".encode() for name in ("127.0.0.1", "localhost"))
        self.url = f"http://{self._hosts[0].decode()}"

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def start(self, environ: Mapping[str, str] = os.environ) -> None:
        """Begin to serve; ``environ`` may name certificates. A process that ends with its run need not stop it."""
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # the CLI limits how long an answer may take
        self._upstream = httpx.AsyncClient(
            timeout=timeout, limits=httpx.Limits(), follow_redirects=False, verify=self._certificates(environ)
        )
        self._reaching = asyncio.ensure_future(self._reaches_anthropic())
        await self._server.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        await self._upstream.aclose()

    async def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a CLI that uses this gateway, with its token in place of the keys."""
        env = dict(environ)
        forget_credentials(env)
        env[BASE_URL] = self.url
        env[self._key.variable] = self.token
        # The CLI would send other requests to other hosts, with the token as the key.
        env.setdefault("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        if await self._reaching:
            env.setdefault(_ASSUME_FIRST_PARTY, "1")
        return {**env, **without_proxy(env)}

    async def _reaches_anthropic(self) -> bool:
        """Return whether the model's API is Anthropic's own and answers, which also opens a connection to it.

        With the address of a gateway the CLI leaves out betas and fields that only Anthropic's API takes, unless it is
        told to assume that API. But then it also asks Anthropic for its settings before its first model request, and
        repeats that for 18 seconds where there is no network.
        """
        if not self._key.is_first_party:
            return False
        try:
            async with asyncio.timeout(_REACH_SECONDS):
                await self._upstream.head(self._key.base_url)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False
        return True

    def _certificates(self, environ: Mapping[str, str]) -> ssl.SSLContext:
        """Return a TLS context with the certificates that the CLI would use."""
        urls = (self._key.base_url, *getproxies().values())
        # Loading the system's certificates takes 60 ms.
        needed = any(url.startswith("https:") for url in urls)
        context = httpx.create_ssl_context() if needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        loads: dict[str, Callable[[str], None]] = {
            "NODE_EXTRA_CA_CERTS": context.load_verify_locations,
            "CLAUDE_CODE_CLIENT_CERT": lambda path: context.load_cert_chain(
                path, environ.get("CLAUDE_CODE_CLIENT_KEY"), environ.get("CLAUDE_CODE_CLIENT_KEY_PASSPHRASE")
            ),
        }
        for variable, load in loads.items():
            if path := environ.get(variable):
                try:
                    load(path)
                except OSError as error:  # of which ssl.SSLError is a kind
                    self._tell(f"the gateway cannot use the certificates of {variable}: {error}")
        return context

    # -- serving ----------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = ModelRequest(scope)
        if refused := self._refusal(request):
            await self._refuse(refused, request, send)
        elif request.path == "/":
            await answer_whole(send, 200, b"")  # the CLI checks that the server is there before its first request
        else:
            await self._in_turn(request, receive, send)

    def _refusal(self, request: ModelRequest) -> Refusal | None:
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

    async def _refuse(self, refused: Refusal, request: ModelRequest, send: Send) -> None:
        if refused.message not in self._told:
            self._told.add(refused.message)
            self._tell(f"the gateway refused {request.method} {request.path[:100]}: {refused.message}")
        await answer_error(send, refused)

    async def _in_turn(self, request: ModelRequest, receive: Receive, send: Send) -> None:
        exchange = Exchange(request, send, self.meter, self._observer_of(request))
        try:
            async with self._free:
                # Before a connection to the model's API is made, so that a request is known although there may be none.
                body = await read_body(receive, MAX_BODY)
                exchange.sent(body)
                if self.meter is not None and self.meter.exhausted:
                    exchange.fail(classify(budget_spent=True), BUDGET_SPENT)
                    await self._refuse(_SPENT, request, send)
                else:
                    await self._forward(exchange, body, receive, send)
        except TooLargeError:
            exchange.fail(classify(status=_TOO_LARGE.status), _TOO_LARGE.message)
            await self._refuse(_TOO_LARGE, request, send)
        except DisconnectedError:
            exchange.fail(*CANCELLED)
        finally:
            exchange.end()

    def _observer_of(self, request: ModelRequest) -> RequestObserver | None:
        if self.observe is None or request.path != _MESSAGES:
            return None
        return self.observe(request.text_headers)

    async def _forward(self, exchange: Exchange, body: bytes, receive: Receive, send: Send) -> None:
        """Send a request to the model and stream its answer back, until the caller disconnects."""
        passing = asyncio.ensure_future(exchange.run(self._upstream, self._key, body))
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
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
            await self._failed(error, exchange, send)
        finally:
            leaving.cancel()
            if self._access is not None and exchange.answering:
                self._access.reached()

    async def _failed(self, error: httpx.HTTPError, exchange: Exchange, send: Send) -> None:
        what = f"the model's API at {httpx.URL(self._key.base_url).host}: {type(error).__name__}"
        status = 504 if isinstance(error, httpx.TimeoutException) else 502
        if exchange.answering:
            exchange.fail(classify(status=status), what)
            raise CutError(what) from error  # the server then drops the CLI's connection too
        if self._access is not None and isinstance(error, httpx.ConnectError):
            await self._access.look()
            what = self._access.problem or what
        exchange.fail(classify(status=status), what)
        is_final = self._access is not None and self._access.is_hopeless
        await answer_error(send, Refusal(status, "api_error", what, is_final))
