"""Tools that are called by URL: a signed POST for each call, in the form of Standard Webhooks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import json
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent_runner.contract.callbacks import SERVER
from host_client.errors import ConfigurationError

from .host_tools import TOOL_SECONDS, Call, HostTool, current_call

MAX_ANSWER = 8 * 1024 * 1024
"""Maximum bytes of an answer's body."""

PAUSES = (0.5, 2.0)
"""Seconds between the requests for one call of an idempotent tool, which are one more than the pauses."""

MAX_ERROR = 2000
"""Maximum characters of an answer's error that the model is shown."""

_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24
_AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which a call can be sent again."""

_PROPAGATOR = TraceContextTextMapPropagator()


class HttpToolError(Exception):
    """A tool's server did not answer a call as it should; the model receives the message."""


def http_tool(
    name: str,
    description: str,
    input_schema: Mapping[str, Any],
    *,
    url: str,
    secret: str,
    timeout: float = TOOL_SECONDS,
    idempotent: bool = False,
    read_only: bool = False,
    server: str = SERVER,
    context: Mapping[str, str] | None = None,
) -> HostTool:
    """Return a tool whose calls are POSTs to ``url``, with the arguments and ``context`` as JSON.

    ``secret`` is ``whsec_`` and the base64 of at least 24 random bytes; the headers ``webhook-id``,
    ``webhook-timestamp`` and ``webhook-signature`` are those of Standard Webhooks, and ``webhook-id`` is the call's
    idempotency key. ``traceparent`` names the call's span. The answer's JSON is the result, as the value of a function
    is (`host_tool`); with a status of 400 or more, its ``error`` is shown to the model. The call of an ``idempotent``
    tool is sent up to three times. Raise `ConfigurationError`.
    """
    key = _key_of(name, secret)
    if not _is_address(url):
        raise ConfigurationError(f"the host tool {name}: url takes an http or https address, not {url[:80]!r}")

    async def call(arguments: dict[str, Any]) -> Any:
        now = current_call()
        body = {**(context or {}), "tool": name, "arguments": arguments, "session_id": now.session_id}
        request = _Post(name, url, key, now.idempotency_key, json.dumps(body).encode(), timeout)
        return await request.answer(PAUSES if idempotent else ())

    def prepare(arguments: Mapping[str, Any]) -> Call:
        return partial(call, dict(arguments))

    hints = {"readOnlyHint": True} if read_only else None
    return HostTool(name, description, dict(input_schema), call, prepare, timeout, idempotent, hints, server)


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header ``webhook-signature`` of a message."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def _is_address(url: str) -> bool:
    try:
        address, port = httpx.URL(url), urlsplit(url).port
    except (ValueError, httpx.InvalidURL):
        return False
    return address.scheme in ("http", "https") and bool(address.host) and port != 0 and not re.search(r"\s", url)


def _key_of(name: str, secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or len(key) < _MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"the host tool {name}: its secret is not {_PREFIX} and the base64 of at least {_MIN_SECRET_BYTES} bytes"
        )
    return key


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return the context of all requests: to make one takes longer than a call."""
    return httpx.create_ssl_context()


class _Post:
    """The request of one call, which has the same id however often it is sent."""

    def __init__(self, name: str, url: str, key: bytes, message_id: str, body: bytes, timeout: float) -> None:
        self._name = name
        self._url = url
        self._key = key
        self._id = message_id
        self._body = body
        self._timeout = timeout

    async def answer(self, pauses: Sequence[float]) -> Any:
        """Return the answer; send the request again after each of the pauses, if that may help.

        Raise `HttpToolError`.
        """
        try:
            async with httpx.AsyncClient(timeout=self._timeout, verify=_trusted()) as client:
                for pause in pauses:
                    with contextlib.suppress(httpx.TransportError):
                        response = await self._send(client)
                        if response.status_code not in _AGAIN:
                            return self._value_of(response)
                    await asyncio.sleep(pause)
                return self._value_of(await self._send(client))
        except httpx.DecodingError:  # the server has answered, so it may have done what it was asked
            raise HttpToolError(f"the answer of {self._name} cannot be read") from None
        except httpx.HTTPError as error:
            reason = type(error).__name__
            raise HttpToolError(f"the server of {self._name} cannot be reached ({reason})") from error

    async def _send(self, client: httpx.AsyncClient) -> httpx.Response:
        now = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": self._id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._key, self._id, now, self._body),
        }
        _PROPAGATOR.inject(headers)
        async with client.stream("POST", self._url, content=self._body, headers=headers) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise HttpToolError(f"the answer of {self._name} has more than {MAX_ANSWER:,} bytes")
            return httpx.Response(response.status_code, content=bytes(body))

    def _value_of(self, response: httpx.Response) -> Any:
        status = response.status_code
        try:
            value = msgspec.json.decode(response.content) if response.content else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = None
            if 200 <= status < 300:
                raise HttpToolError(f"the answer of {self._name} is not JSON") from None
        if 200 <= status < 300:
            return value
        told = cast("dict[str, Any]", value).get("error") if isinstance(value, dict) else None
        raise HttpToolError(
            told[:MAX_ERROR] if isinstance(told, str) else f"the server of {self._name} answered with {status}"
        )
