"""Errors as `application/problem+json` (RFC 9457). One table of what there is; one place that answers.

A caller is told what to do about its own mistakes, and nothing of ours but the id under which they are logged.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_runner.contract.sanitize import single_line
from host_client.store.base import BadCursorError, StoreError, TooManyError, UnknownSessionError

MEDIA_TYPE = "application/problem+json"
TYPES = "/problems/"
"""What a `type` starts with; the rest is the slug."""
MAX_ERRORS = 20
"""Mistakes of one body that are told."""
MAX_WORDS = 500
"""Characters of a detail."""
RETRY_SECONDS = 5
"""When a caller may come again after the store has failed."""

_logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A kind of problem; ``title`` is the same for all of its kind, ``when`` is for the documents."""

    status: int
    title: str
    when: str


PROBLEMS: Mapping[str, Problem] = {
    "bad-request": Problem(400, "Bad request", "The request cannot be read: no JSON, no or two `Host` headers, …"),
    "token-in-url": Problem(400, "A token in the URL", "The query holds `token` or `access_token`: URLs are logged"),
    "unauthenticated": Problem(401, "Not signed in", "There is no token, or it is unknown, revoked or expired"),
    "forbidden": Problem(403, "Not allowed", "The token's role does not allow this"),
    "cross-origin": Problem(403, "Another site's request", "A page of an origin that is not allowed sent the request"),
    "not-found": Problem(404, "Not found", "There is no such thing, or it is another tenant's"),
    "method-not-allowed": Problem(405, "Method not allowed", "The path takes other methods; see `Allow`"),
    "conflict": Problem(409, "Conflict", "The state of the thing does not allow this"),
    "already-decided": Problem(409, "Decided already", "Somebody, or the timeout, decided first; see `decision`"),
    "session-closed": Problem(409, "The session is closed", "A closed session takes no more commands"),
    "key-in-use": Problem(409, "Still being carried out", "A request with this `Idempotency-Key` has not ended yet"),
    "too-large": Problem(413, "Too large", "The body, or the file asked for, is larger than the limit"),
    "unsupported-media-type": Problem(415, "Unsupported media type", "The body is not `application/json`"),
    "unknown-host": Problem(421, "Unknown host", "The `Host` header names no host of the service"),
    "invalid": Problem(422, "Invalid", "The values do not fit; see `errors`"),
    "input-changed": Problem(422, "Not what was shown", "It is no answer to what waits: the hash or a key is another"),
    "key-reused": Problem(422, "Key used before", "The `Idempotency-Key` was used with another request"),
    "too-many-attempts": Problem(429, "Too many bad tokens", "The address sent too many unknown tokens"),
    "too-many-turns": Problem(429, "Too many turns", "The tenant's turns of this minute are used up"),
    "too-many-sessions": Problem(429, "Too many sessions", "The tenant has as many open sessions as it may"),
    "too-many-readers": Problem(429, "Too many readers", "The session has as many open streams as it may"),
    "too-many-downloads": Problem(429, "Too many downloads", "Too many requests for files wait already; come again"),
    "budget-exceeded": Problem(429, "Budget exceeded", "What the tenant may spend on this day (UTC) is spent"),
    "internal": Problem(500, "Internal error", "It is our fault; `incident` is in the service's log"),
    "sandbox-failed": Problem(502, "The sandbox failed", "The session's sandbox cannot be reached, or refuses"),
    "store-unavailable": Problem(503, "The store cannot be reached", "Come again after `Retry-After` seconds"),
    "shutting-down": Problem(503, "Shutting down", "The service takes nothing new; come again"),
}

EVERYWHERE = (
    "bad-request", "token-in-url", "unauthenticated", "forbidden", "cross-origin", "unknown-host", "invalid",
    "too-many-attempts", "internal", "store-unavailable",
)  # fmt: skip
"""What any route that takes a token may answer."""
WITH_BODY = ("too-large", "unsupported-media-type")
"""What any route with a body may answer besides."""

_OF_STATUS = {
    400: "bad-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    413: "too-large",
    415: "unsupported-media-type",
    422: "invalid",
}


class ProblemError(HTTPException):
    """A problem of the table `PROBLEMS`, with what to say about this one; ``extras`` are further members of the body.

    An `HTTPException`, as FastAPI lets only those through when it reads a body.
    """

    def __init__(
        self, slug: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **extras: object
    ) -> None:
        self.slug = slug
        self.kind = PROBLEMS[slug]
        self.extras = extras
        super().__init__(self.kind.status, detail or self.kind.when, headers)

    def response(self, scope: Scope) -> Response:
        """Return the answer to a request."""
        return _response(scope, TYPES + self.slug, self.kind.title, self.status_code, self.detail, self.extras, self)


def _response(
    scope: Scope,
    about: str,
    title: str,
    status: int,
    detail: str,
    extras: Mapping[str, object],
    error: HTTPException,
) -> Response:
    instance = quote(str(scope.get("path", "")).encode("utf-8", "replace")[:1000])
    fixed = {"type": about, "title": title, "status": status, "detail": single_line(detail, MAX_WORDS)}
    # ASCII: a lone surrogate of the caller's JSON is no UTF-8. What is fixed wins over extras of the same name.
    content = json.dumps({**extras, **fixed, "instance": instance})
    return Response(content, status, headers=error.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of an application a problem, and say so in its OpenAPI document.

    To be called before `Guard` is added: what is added last is outermost, and its headers belong on errors too.
    """
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StoreError, _on_store)
    app.add_exception_handler(BadCursorError, _on_cursor)
    app.add_middleware(Incidents)
    _describe(app)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ProblemError):
        return error.response(request.scope)
    slug, taken = _OF_STATUS.get(error.status_code), _taken(request)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED or (slug == "not-found" and taken):
        # That nothing is there is said by the page's files, which take what no route does.
        allow = {"allow": ", ".join(taken or ("GET", "HEAD"))}
        return ProblemError("method-not-allowed", headers=allow).response(request.scope)
    if slug is not None:
        return ProblemError(slug, error.detail, headers=error.headers).response(request.scope)
    if error.status_code < HTTPStatus.BAD_REQUEST:  # no error; it may have no body at all
        return Response(status_code=error.status_code, headers=error.headers)
    title = HTTPStatus(error.status_code).phrase
    return _response(request.scope, "about:blank", title, error.status_code, error.detail, {}, error)


def _taken(request: Request) -> list[str]:
    """Return the methods that all routes of a path take together: who answers 405 knows its own alone."""
    routes = [each for each in request.app.routes if not isinstance(each, Mount)]
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(each.matches({**request.scope, "method": method})[0] is Match.FULL for each in routes)
    ]


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = cast(Sequence[Mapping[str, Any]], error.errors())
    if found and found[0].get("type") == "json_invalid":
        what = f"the body is no JSON: {found[0]['ctx']['error']} at character {found[0]['loc'][-1]}"
        return ProblemError("bad-request", what).response(request.scope)
    told = [{"where": _where(each["loc"]), "what": single_line(str(each["msg"]), 200)} for each in found[:MAX_ERRORS]]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in told[:3])
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return ProblemError("invalid", single_line(detail, MAX_WORDS - 40) + more, errors=told).response(request.scope)


def _where(location: Sequence[str | int]) -> str:
    return single_line(".".join(str(part)[:100] for part in location[:10]), 200)


async def _on_store(request: Request, error: Exception) -> Response:
    if isinstance(error, TooManyError):
        return ProblemError("too-many-sessions", str(error)).response(request.scope)
    if isinstance(error, UnknownSessionError):
        return ProblemError("not-found", "there is no such session").response(request.scope)
    _logger.error("the store failed %s: %s", request.method, error)
    problem = ProblemError("store-unavailable", headers={"retry-after": str(RETRY_SECONDS)})
    return problem.response(request.scope)


async def _on_cursor(request: Request, error: Exception) -> Response:
    told = {"where": "query.before", "what": "takes the `next` of a page"}
    return ProblemError("invalid", "before takes the next of a page", errors=[told]).response(request.scope)


class Incidents:
    """ASGI middleware: what nobody has caught is logged under an id, and the caller is told the id alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            await send(message)  # what this raises leaves nothing sent
            started = True

        try:
            await self._app(scope, receive, sent)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except HTTPException as error:  # raised by a middleware
            if started:
                raise
            await (await _on_http(Request(scope), error))(scope, receive, sent)
        except Exception:
            incident = secrets.token_hex(8)
            _logger.exception("incident %s: %s failed", incident, scope["method"])
            if started:
                raise  # the server cuts the connection, so that half an answer is not taken for a whole one
            await ProblemError("internal", incident=incident).response(scope)(scope, receive, sent)


# -- the OpenAPI document ----------------------------------------------------------------------------------

_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. Some types have further members.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["/problems/not-found"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["where", "what"],
                "properties": {"where": {"type": "string"}, "what": {"type": "string"}},
            },
        },
        "incident": {"type": "string"},
    },
}


def PROBLEM_RESPONSES(*slugs: str) -> dict[int | str, dict[str, Any]]:  # noqa: N802 - reads as a table in routes
    """Return what a route's ``responses=`` says of the problems that it may answer, several of one status as one."""
    by_status: dict[int | str, list[str]] = {}
    for slug in dict.fromkeys(slugs):
        by_status.setdefault(PROBLEMS[slug].status, []).append(f"`{slug}`: {PROBLEMS[slug].when}")
    return {
        status: {"description": "; ".join(words), "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status, words in sorted(by_status.items(), key=lambda item: int(item[0]))
    }


def _describe(app: FastAPI) -> None:
    """Put the schema of a problem into the OpenAPI document, in place of FastAPI's own of a validation error."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = _SCHEMA
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operations in document.get("paths", {}).values():
            for operation in operations.values():
                answer = operation.get("responses", {}).get("422")
                if answer is not None and "application/json" in answer.get("content", {}):
                    operation["responses"]["422"] = PROBLEM_RESPONSES("invalid")[422]
        return document

    app.openapi = openapi
