"""One request that the gateway passes on to the model's API, and the answer that it passes back."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import httpx2 as httpx

from ._answers import ModelAnswer
from ._asgi import Scope, Send, answer_whole
from ._credential import Credential
from ._metering import Meter
from ._observer import RequestObserver
from .contract.classify import Failure, classify
from .contract.credentials import REFUSED
from .contract.protocol import to_json

MAX_BODY = 32 * 1024 * 1024
"""Maximum bytes of a request's body, as in the Messages API."""

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"authorization", b"x-api-key", b"cookie", b"accept-encoding", b"expect"}
# Cookies and redirects concern the runner's connection, not the CLI.
_NOT_SENT_BACK = _HOP_BY_HOP | {b"set-cookie", b"location"}

_ASK_NO_MORE = (b"x-should-retry", b"false")


class Refusal(NamedTuple):
    """An error that the gateway itself answers, in the form of the API's errors."""

    status: int
    kind: str
    message: str
    is_final: bool = False
    """A retry cannot succeed."""


UNREADABLE = Refusal(502, "api_error", "the model's answer is compressed, so its cost cannot be read")

CANCELLED = classify(reason="aborted_streaming"), "the CLI disconnected"
"""The failure, and its message, of a request that the CLI abandons."""


class CutError(ConnectionError):
    """The model's answer ended before it was complete."""


class ModelRequest:
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
    def text_headers(self) -> dict[str, str]:
        """Return the headers as text; their names are in lower case."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}

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


class Exchange:
    """Passes one request on to the model, and the answer back."""

    def __init__(
        self, request: ModelRequest, send: Send, meter: Meter | None, observer: RequestObserver | None
    ) -> None:
        """Prepare an exchange, which is reported to ``observer``."""
        self._request = request
        self._send = send
        self._meter = meter
        self._observer = observer
        self._answer: ModelAnswer | None = None
        self._status: int | None = None
        self._failure: tuple[Failure, str] | None = None
        self.answering = False
        self.abandoned = False

    @property
    def may_stop(self) -> bool:
        """Return whether it may be cancelled: with a budget, not before the cost of the input has been read."""
        return self._meter is None or (self._answer is not None and self._answer.begun)

    def sent(self, body: bytes) -> None:
        """Report the request's body to the observer."""
        if self._observer is not None:
            self._observer.sent(body)

    def fail(self, failure: Failure, message: str) -> None:
        """Note why there is no whole answer."""
        self._failure = failure, message

    def end(self) -> None:
        """Report the end to the observer."""
        if self._observer is not None:
            failure, message = self._failure or self._outcome()
            self._observer.end(failure, message)

    def _outcome(self) -> tuple[Failure | None, str]:
        if self._status is not None and self._status >= 400:
            return classify(status=self._status), f"HTTP {self._status}"
        if self._answer is not None and self._answer.is_whole:
            return None, ""
        if self.abandoned:
            return CANCELLED
        return classify(no_response=True), "the answer ended before it was complete"

    async def run(self, upstream: httpx.AsyncClient, key: Credential, body: bytes) -> None:
        """Send the request and pass the answer on."""
        url = httpx.URL(key.base_url.rstrip("/") + self._request.path, query=self._request.query or None)
        headers = self._request.sent_on(key)
        if self._observer is not None and (traceparent := self._observer.traceparent):
            headers["traceparent"] = traceparent  # the CLI's names its own span, which is not part of the trace
        outgoing = upstream.build_request("POST", url, headers=headers, content=body)
        response = await upstream.send(outgoing, stream=True)
        try:
            await self._pass_on(response, key)
        finally:
            if self._meter is not None and self._answer is not None:
                self._meter.spent += self._answer.cost
            # The shield closes the connection also when this task is cancelled.
            await asyncio.shield(response.aclose())

    async def _pass_on(self, response: httpx.Response, key: Credential) -> None:
        is_readable = response.headers.get("content-encoding", "identity") == "identity"
        if self._meter is not None and not is_readable:
            await answer_error(self._send, UNREADABLE)
            return
        if is_readable:
            on_event = self._observer.receive if self._observer is not None else None
            self._answer = ModelAnswer(response.headers.get("content-type", ""), on_event)
        self._status = response.status_code
        headers = [
            (name, value)
            for name, value in response.headers.raw
            if name.lower() not in _NOT_SENT_BACK and not key.is_in(value)
        ]
        if response.status_code in REFUSED:
            headers.append(_ASK_NO_MORE)
        self.answering = True
        if self._observer is not None:
            self._observer.answered(response.status_code)
        await self._give({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for chunk in response.aiter_raw():
            # This waits for a slow CLI, and so slows the model's API down.
            await self._give({"type": "http.response.body", "body": chunk, "more_body": True})
            if self._answer is not None:
                self._answer.feed(chunk)
            if self.abandoned and self.may_stop:
                return
        if self._answer is not None:
            self._answer.end()
        await self._give({"type": "http.response.body", "body": b""})

    async def _give(self, message: MutableMapping[str, Any]) -> None:
        if not self.abandoned:
            await self._send(message)


async def answer_error(send: Send, refused: Refusal) -> None:
    error = {"type": "error", "error": {"type": refused.kind, "message": refused.message}}
    more = (_ASK_NO_MORE,) if refused.is_final else ()
    await answer_whole(send, refused.status, to_json(error), *more)
