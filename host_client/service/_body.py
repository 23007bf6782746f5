"""Reading of request bodies: large ones of known callers only, and JSON so that every value can be encoded again.

Python's own parser accepts lone surrogates, which UTF-8 cannot encode, `NaN`, which JSON cannot, and any nesting that
its stack has room for. Each of them would fail later, as an error of the service.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from ._problems import ProblemError

MAX_DEPTH = 100
"""Maximum nesting of arrays and objects."""

UPLOADS = "/api/files"
"""Path of the route whose body is a file."""

LARGE = 1024 * 1024
"""Bytes from which on a body is large: it is read only from a known caller, and few are read at a time."""

BODY_SECONDS = 300.0
"""Seconds that a caller may take to send a large body, as others wait meanwhile."""

_ATTACHING = re.compile(r"/api/(?:sessions|stream/agent/init|sessions/[A-Za-z0-9_-]+/turns)/?")

_MAX_VALUES = 300_000
"""Maximum number of values in a large body: parsing more would hold up everything else for seconds."""

_Container = list[Any] | dict[str, Any]


def takes_attachments(path: str) -> bool:
    """Return whether the bodies of requests to a path may have attachments."""
    return _ATTACHING.fullmatch(path) is not None


class JsonRoute(APIRoute):
    """A route that parses its body with `read_json`; for a router's ``route_class``.

    A large body, where one is allowed, waits for a place in the application's ``state.uploads``.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def reading(request: Request) -> Response:
            read = _JsonRequest(request.scope, request.receive)
            if not _may_be_large(read):
                return await handle(read)
            # Nobody else may take a place, which a slow body occupies.
            (await request.app.state.authenticator.principal(read)).require("operator")
            async with request.app.state.uploads.place():
                await _read_in_time(read)
                return await handle(read)

        return reading


def _may_be_large(request: Request) -> bool:
    # As the guard sees it: `request.url` leaves out some characters of a path.
    path, length = request.scope["path"], request.headers.get("content-length", "")
    if request.method != "POST" or not (path == UPLOADS or takes_attachments(path)):
        return False
    return not length.isdecimal() or int(length[:20]) > LARGE


async def _read_in_time(request: Request) -> None:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await request.body()
    except TimeoutError:
        raise ProblemError(
            "bad-request", f"the body did not arrive within {BODY_SECONDS:g} s", headers={"connection": "close"}
        ) from None


class _JsonRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """Return a body's JSON value; raise `ProblemError` (400) if it is not JSON in UTF-8, or too deep or too full."""
    # The content of files in base64 has none of these characters.
    if len(body) > LARGE and sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ProblemError("bad-request", f"the body has more than {_MAX_VALUES:,} values")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ProblemError("bad-request", f"the body is not JSON: {why}") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:  # most bodies need no further check
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _containers(each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise _too_deep()


def _containers(values: Iterable[Any]) -> list[_Container]:
    return [each for each in values if isinstance(each, (list, dict))]


def _too_deep() -> ProblemError:
    return ProblemError("bad-request", f"arrays and objects in the body are nested more than {MAX_DEPTH} levels deep")
