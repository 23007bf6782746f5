"""Errors as `application/problem+json` (RFC 9457): the table of all problems, and the code that answers with them.

A caller gets advice on its own mistakes. Of a fault in the service it gets only the id under which it is logged.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
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
from host_client.store.base import BadCursorError, FilesFullError, StoreError, TooManyError, UnknownSessionError

from ._models import PATTERN_WORDS

MEDIA_TYPE = "application/problem+json"
TYPES = "/problems/"
"""Start of a problem's `type`; the rest is its slug."""
MAX_ERRORS = 20
"""Maximum number of mistakes that are listed of one request."""
MAX_WORDS = 500
"""Maximum number of characters of a detail."""
RETRY_SECONDS = 5
"""Seconds after which to try again when the store has failed."""

_logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A kind of problem: its HTTP status, its title, and the cause that is documented."""

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
    "already-decided": Problem(409, "Decided already", "A person or the timeout decided first; see `decision`"),
    "session-closed": Problem(409, "The session is closed", "A closed session takes no more commands"),
    "key-in-use": Problem(
        409, "Still being carried out", "The first request with this `Idempotency-Key` is still being carried out"
    ),
    "too-large": Problem(413, "Too large", "The body, or the file asked for, is larger than the limit"),
    "unsupported-media-type": Problem(
        415,
        "Unsupported media type",
        "The body is not JSON (of an upload: not `application/octet-stream`)",
    ),
    "unknown-host": Problem(421, "Unknown host", "The `Host` header names a host that the service does not serve"),
    "invalid": Problem(422, "Invalid", "The values do not fit; see `errors`"),
    "input-changed": Problem(
        422, "Not what was shown", "The decision or answer does not fit the request: another hash or key"
    ),
    "key-reused": Problem(422, "Key used before", "The `Idempotency-Key` was used with another request"),
    "too-many-attempts": Problem(429, "Too many bad tokens", "The address sent too many unknown tokens"),
    "too-many-turns": Problem(429, "Too many turns", "The tenant's turns of this minute are used up"),
    "too-many-uploads": Problem(
        429, "Too many uploads", "The tenant's uploads of this minute are used up, or too many large requests wait"
    ),
    "too-many-files": Problem(
        429, "Too many files", "The tenant's uploads and attachments take as much room as they may"
    ),
    "too-many-sessions": Problem(429, "Too many sessions", "The tenant has as many open sessions as it may"),
    "too-many-readers": Problem(429, "Too many readers", "The session has as many open streams as it may"),
    "too-many-downloads": Problem(429, "Too many downloads", "Too many requests for files wait already; try again"),
    "budget-exceeded": Problem(
        429, "Budget exceeded", "The tenant has spent, or promised to open sessions, all it may spend on this day (UTC)"
    ),
    "internal": Problem(500, "Internal error", "A fault in the service; its log has the details under `incident`"),
    "sandbox-failed": Problem(
        502, "The sandbox failed", "The session's sandbox cannot be reached, or refuses the request"
    ),
    "store-unavailable": Problem(503, "The store cannot be reached", "Try again after `Retry-After` seconds"),
    "shutting-down": Problem(503, "Shutting down", "The service is being stopped; try again"),
}

EVERYWHERE = (
    "bad-request", "token-in-url", "unauthenticated", "forbidden", "cross-origin", "unknown-host", "invalid",
    "too-many-attempts", "internal", "store-unavailable",
)  # fmt: skip
"""Problems of every route that requires a token."""
WITH_BODY = ("too-large", "unsupported-media-type")
"""Further problems of every route with a body."""

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
    """A problem from the table `PROBLEMS`, with its detail; ``extras`` are further members of the answer's body.

    An `HTTPException`, because FastAPI lets no other exception through while it reads a body.
    """

    def __init__(
        self, slug: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **extras: object
    ) -> None:
        self.slug = slug
        self.kind = PROBLEMS[slug]
        self.extras = extras
        super().__init__(self.kind.status, detail or self.kind.when, headers)

    def response(self, scope: Scope) -> Response:
        """Return the problem as the answer to a request."""
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
    # ASCII, as UTF-8 cannot encode a lone surrogate from the caller's JSON. ``fixed`` overrides extras.
    content = json.dumps({**extras, **fixed, "instance": instance})
    return Response(content, status, headers=error.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, problem_of: Mapping[type[Exception], str] = {}) -> None:
    """Answer every error of an application with a problem, and describe that in its OpenAPI document.

    ``problem_of`` gives the problem for further errors. Call this before adding `Guard`: the middleware added last is
    outermost, and errors need the headers of `Guard` too.
    """
    for kind, slug in {TooManyError: "too-many-sessions", FilesFullError: "too-many-files", **problem_of}.items():
        app.add_exception_handler(kind, partial(_on_known, slug))
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StoreError, _on_store)
    app.add_exception_handler(BadCursorError, _on_cursor)
    app.add_middleware(Incidents)
    _describe(app)


async def _on_known(slug: str, request: Request, error: Exception) -> Response:
    return ProblemError(slug, str(error)).response(request.scope)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ProblemError):
        return error.response(request.scope)
    slug, methods = _OF_STATUS.get(error.status_code), _allowed_methods(request)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED or (slug == "not-found" and methods):
        # The 404 came from the page's files, which get every request that no route accepts.
        allow = {"allow": ", ".join(methods or ("GET", "HEAD"))}
        return ProblemError("method-not-allowed", headers=allow).response(request.scope)
    if slug is not None:
        return ProblemError(slug, error.detail, headers=error.headers).response(request.scope)
    if error.status_code < HTTPStatus.BAD_REQUEST:  # not an error, and its body may have to be empty
        return Response(status_code=error.status_code, headers=error.headers)
    title = HTTPStatus(error.status_code).phrase
    return _response(request.scope, "about:blank", title, error.status_code, error.detail, {}, error)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that the routes of a path accept together; the route that answers 405 knows only its own."""
    routes = [each for each in request.app.routes if not isinstance(each, Mount)]
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(each.matches({**request.scope, "method": method})[0] is Match.FULL for each in routes)
    ]


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = cast(Sequence[Mapping[str, Any]], error.errors())
    mistakes = [{"where": _where(each["loc"]), "what": _what(each)} for each in found[:MAX_ERRORS]]
    detail = "; ".join(f"{each['where']}: {each['what']}" for each in mistakes[:3])
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return ProblemError("invalid", single_line(detail, MAX_WORDS - 40) + more, errors=mistakes).response(request.scope)


def _what(error: Mapping[str, Any]) -> str:
    """Return a validation error in words for a person, without pydantic's terms and regular expressions."""
    match error["type"]:
        case "string_pattern_mismatch":
            words = PATTERN_WORDS.get(error["ctx"]["pattern"], "contains characters that are not allowed")
        case "extra_forbidden":
            words = "this field is unknown"
        case "missing":
            words = "this field is required"
        case "model_attributes_type" | "dict_type" | "model_type":
            words = "must be a JSON object"
        case "list_type":
            words = "must be a JSON array"
        case "union_tag_not_found":
            words = "the field `type` is required"
        case "union_tag_invalid":
            words = f"`type` must be one of {error['ctx']['expected_tags']}"
        case "too_short":
            words = f"must have at least {error['ctx']['min_length']} items"
        case "too_long":
            words = f"must have at most {error['ctx']['max_length']} items"
        case "value_error":
            words = str(error["ctx"]["error"])
        case _:
            words = str(error["msg"]).replace("Input should be", "must be").replace("Input should", "must")
            words = words.replace("String should have", "must have")
    return single_line(words, 400)


def _where(location: Sequence[str | int]) -> str:
    return single_line(".".join(str(part)[:100] for part in location[:10]), 200)


async def _on_store(request: Request, error: Exception) -> Response:
    if isinstance(error, UnknownSessionError):
        return ProblemError("not-found", "there is no such session").response(request.scope)
    _logger.error("the store failed %s: %s", request.method, error)
    problem = ProblemError("store-unavailable", headers={"retry-after": str(RETRY_SECONDS)})
    return problem.response(request.scope)


async def _on_cursor(request: Request, error: Exception) -> Response:
    mistake = {"where": "query.before", "what": "must be the `next` of an earlier page"}
    detail = "query.before: must be the next of an earlier page"
    return ProblemError("invalid", detail, errors=[mistake]).response(request.scope)


class Incidents:
    """ASGI middleware that logs an uncaught exception under an id and answers with a problem that holds only the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            await send(message)  # if it raises, nothing was sent
            started = True

        try:
            await self._app(scope, receive, sent)
        except ClientDisconnect:
            pass  # the caller is gone
        except HTTPException as error:  # raised by a middleware
            if started:
                raise
            await (await _on_http(Request(scope), error))(scope, receive, sent)
        except Exception:
            incident = secrets.token_hex(8)
            _logger.exception("incident %s: %s failed", incident, scope["method"])
            if started:
                raise  # the server cuts the connection, so that the caller does not take half an answer for a whole one
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
    """Return the ``responses=`` of a route for the problems that it may answer, grouped by status."""
    by_status: dict[int | str, list[str]] = {}
    for slug in dict.fromkeys(slugs):
        by_status.setdefault(PROBLEMS[slug].status, []).append(f"`{slug}`: {PROBLEMS[slug].when}")
    return {
        status: {"description": "; ".join(words), "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status, words in sorted(by_status.items(), key=lambda item: int(item[0]))
    }


def _describe(app: FastAPI) -> None:
    """Replace FastAPI's schema of validation errors in the OpenAPI document by that of a problem."""
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
