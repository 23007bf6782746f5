"""How a body is read: JSON as its standard has it, so that whatever a route is given can be written again.

Python's own parser takes lone surrogates, which no UTF-8 can hold, `NaN`, which no JSON can, and as many levels as its
stack happens to have room for: each would fail far from here, as an error of ours.
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
"""Levels of lists and objects."""

_Container = list[Any] | dict[str, Any]


class JsonRoute(APIRoute):
    """A route that reads its body with `read_json`; to be a router's ``route_class``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def reading(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return reading


class _JsonRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """Return what a body says; raise `ProblemError` (400) for what is no JSON in UTF-8, or too deep."""
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        words = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ProblemError("bad-request", f"the body is no JSON: {words}") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:  # most bodies need no second look
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
    return ProblemError("bad-request", f"the body has more than {MAX_DEPTH} levels")
