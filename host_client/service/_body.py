"""Parsing of request bodies as strict JSON, so that every value a route gets can be encoded again.

Python's own parser accepts lone surrogates, which UTF-8 cannot encode, `NaN`, which JSON cannot, and any nesting that
its stack has room for. Each of them would fail later, as an error of the service.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from ._problems import ProblemError

MAX_DEPTH = 100
"""Maximum nesting of arrays and objects."""

_Container = list[Any] | dict[str, Any]


class JsonRoute(APIRoute):
    """A route that parses its body with `read_json`; for a router's ``route_class``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def reading(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return reading


class _JsonRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """Return a body's JSON value; raise `ProblemError` (400) if it is not JSON in UTF-8, or is nested too deeply."""
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
