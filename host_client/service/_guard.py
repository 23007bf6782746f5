"""Middleware before every route: checks of the host, the origin and the body of a request. Pure ASGI, so it streams.

A browser sends requests for any page. Three checks keep other sites' pages out: the `Host` header must name this
service (DNS rebinding gives a foreign name this service's address), `Origin` and `Sec-Fetch-Site` must be those of the
service's own page, and a body must be JSON, or of an upload `application/octet-stream` (no form can send these).
Programs send neither of the two headers and pass.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._auth import COOKIE, refuse_token_in_url
from ._body import UPLOADS, takes_attachments
from ._limits import ServiceLimits
from ._problems import ProblemError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Host names that are always allowed, with any port."""
PROBES = frozenset({"/healthz", "/readyz"})
"""Paths of health checks, which use an address as the host name."""
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The page may load nothing from other sites, run no inline script, and be shown in no frame."""
API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""No answer of the API is a page: a file that a browser shows nevertheless loads nothing and runs nothing."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_SENT = ("authorization", "content-type", "idempotency-key", "last-event-id", "traceparent", "tracestate", "baggage")
_TOLD = ("location", "traceresponse", "x-trace-id", "idempotent-replayed", "retry-after")
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_BREAKS = re.compile(rb"[\r\n\0]")


class Guard:
    """ASGI middleware that refuses requests of other sites' pages and adds security headers to every answer.

    ``hosts`` are allowed host names besides `LOOPBACK`, as ``name`` (any port) or ``name:port``. ``origins`` are those
    of other sites whose pages may use the API, as ``https://name[:port]``. ``limits`` has those of bodies.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
        limits: ServiceLimits | None = None,
    ) -> None:
        self._hosts = frozenset(_normal_host(each) for each in (*LOOPBACK, *hosts))
        self._origins = frozenset(_normal_origin(each) for each in origins)
        self._limits = limits or ServiceLimits()
        self._app = app
        if self._origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=sorted(self._origins),
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=_SENT,
                allow_credentials=True,
                expose_headers=_TOLD,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, sender = Headers(scope=scope), self._hardened(scope, send)
        try:
            self._check(scope, headers)
        except ProblemError as error:
            await error.response(scope)(scope, receive, sender)
        else:
            await self._app(scope, _bounded(receive, self._max_body(scope["path"])), sender)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] in PROBES:
            return
        host = self._check_host(headers)
        self._check_site(scope, headers, host)
        refuse_token_in_url(HTTPConnection(scope))
        if scope["method"] in UNSAFE:
            self._check_body(scope, headers)

    def _check_host(self, headers: Headers) -> str:
        sent = headers.getlist("host")
        match = _HOST.fullmatch(sent[0].lower()) if len(sent) == 1 else None
        if match is None:
            raise ProblemError("bad-request", "send exactly one Host header, with a name or an address")
        if match["name"] not in self._hosts and match[0] not in self._hosts:
            detail = (
                f"the Host header names {match[0]}, which this service does not serve: start it with --allowed-host"
            )
            raise ProblemError("unknown-host", detail)
        return match[0]

    def _check_site(self, scope: Scope, headers: Headers, host: str) -> None:
        is_unsafe = scope["method"] in UNSAFE
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if not (is_unsafe or preflight or scope["path"].startswith("/api/")):
            return  # the page itself, to which links on other sites may lead
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site")
        if origins:
            if len(origins) > 1 or not self._is_ours(origins[0], scope["scheme"], host):
                raise ProblemError(
                    "cross-origin", "the page's origin is not allowed: start the service with --allowed-origin"
                )
        elif site not in (None, "same-origin", "none"):
            raise ProblemError("cross-origin", "a page of another site sent the request")
        elif is_unsafe and site is None and _rests_on_cookie(headers):
            # Every browser sends Origin here, and only browsers use the cookie.
            raise ProblemError(
                "cross-origin", "a cookie alone allows no changes: send Authorization: Bearer, or Origin"
            )

    def _is_ours(self, origin: str, scheme: str, host: str) -> bool:
        if origin in self._origins:
            return True
        theirs, separator, authority = origin.lower().partition("://")
        # Behind a proxy that ends TLS, the scheme is http here and https for the page. A trusted proxy may also pass on
        # the scheme wss, which no page has.
        if not separator or theirs not in ("https", scheme) or theirs not in _DEFAULT_PORTS:
            return False
        return _without_port(authority, theirs) == _without_port(host, theirs)

    def _max_body(self, path: str) -> int:
        if path == UPLOADS:
            return self._limits.max_file
        return self._limits.max_attached_body if takes_attachments(path) else self._limits.max_body

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        length, limit = headers.get("content-length", ""), self._max_body(scope["path"])
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_large(limit)
        has_body = length.strip("0") or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        expected = "application/octet-stream" if scope["path"] == UPLOADS else "application/json"
        if has_body and scope["path"].startswith("/api/") and kind != expected:
            raise ProblemError("unsupported-media-type", f"send the body as {expected}")

    def _hardened(self, scope: Scope, send: Send) -> Send:
        is_api = scope["path"].startswith("/api/")

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({**HEADERS, "content-security-policy": API_POLICY} if is_api else HEADERS)
                # The page's modules must be of one version, so a browser has to revalidate each of them.
                headers["cache-control"] = "no-store" if is_api else "no-cache"
                for name, value in message["headers"]:
                    if _BREAKS.search(name) or _BREAKS.search(value):
                        # Raised before anything is sent, so that `Incidents` can still answer.
                        raise ValueError(f"the header {name!r} of an answer contains a line break")
            await send(message)

        return hardened


def _bounded(receive: Receive, limit: int) -> Receive:
    """Wrap ``receive`` to raise `ProblemError` (413) once a body of unknown length exceeds ``limit`` bytes."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _too_large(limit)
        return message

    return bounded


def _too_large(limit: int) -> ProblemError:
    # The connection is closed, as the unread rest of the body must not be taken for the next request.
    return ProblemError(
        "too-large", f"the body may have at most {limit} bytes", headers={"connection": "close"}, limit=limit
    )


def _rests_on_cookie(headers: Headers) -> bool:
    return "authorization" not in headers and any(f"{COOKIE}=" in each for each in headers.getlist("cookie"))


def _without_port(authority: str, scheme: str) -> str:
    return authority.removesuffix(f":{_DEFAULT_PORTS[scheme]}")


def _normal_host(host: str) -> str:
    """Return a host in lower case; raise `ValueError` if it is not a name or address (but a wildcard, a URL, …)."""
    if _HOST.fullmatch(host.lower()) is None:
        raise ValueError(
            f"{host!r} is not a host: give a name or an address, with or without a port, like agents.acme.com"
        )
    return host.lower()


def _normal_origin(origin: str) -> str:
    """Return an origin as browsers send it; raise `ValueError` if it is not one (but a wildcard, `null`, …)."""
    normal = origin.lower().removesuffix("/")
    parts = urlsplit(normal)
    if parts.scheme not in _DEFAULT_PORTS or normal != f"{parts.scheme}://{parts.netloc}":
        raise ValueError(f"{origin!r} is not an origin: give a scheme and a host, like https://console.acme.com")
    if _HOST.fullmatch(parts.netloc) is None:
        raise ValueError(f"{origin!r} is not an origin: {parts.netloc!r} is not a host")
    return f"{parts.scheme}://{_without_port(parts.netloc, parts.scheme)}"
