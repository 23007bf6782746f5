"""Authentication by bearer tokens with roles, and the routes that keep a token in a browser's cookie."""

from __future__ import annotations

import hmac
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, get_args

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from host_client.store.base import Role, Token
from host_client.store.tokens import PREFIX, digest_of

from ._body import JsonRoute
from ._problems import EVERYWHERE, PROBLEM_RESPONSES, WITH_BODY, ProblemError

COOKIE = "sandspan_token"
ROLES: tuple[Role, ...] = get_args(Role)
"""The roles; each includes the rights of those before it."""
IN_URL = frozenset({"token", "access_token", COOKIE})
"""Query parameters that are refused: URLs end up in logs, histories and `Referer` headers."""

CACHE_SECONDS = 5.0
"""Maximum seconds for which a revoked token still works."""
MAX_CACHED = 1000
MAX_FAILURES = 20
"""Maximum number of unknown tokens that an address may send in `FAILURE_SECONDS`."""
FAILURE_SECONDS = 60.0
MAX_ADDRESSES = 10_000
COOKIE_SECONDS = 30 * 86_400
"""Seconds for which a browser keeps a token, unless the token expires earlier."""

_FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43,128}}")


@dataclass(frozen=True)
class Principal:
    """The caller of a request and its role; ``tenant_id`` None, of a service without tokens, acts for all tenants."""

    name: str
    tenant_id: str | None
    role: Role
    token_id: str | None

    def has(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)

    def require(self, role: Role) -> Principal:
        """Return this caller if it has a role; raise `ProblemError` (403) otherwise."""
        if not self.has(role):
            raise ProblemError("forbidden", f"this requires the role {role}; the token has the role {self.role}")
        return self


LOCAL = Principal("local", None, "operator", None)
"""The caller of a service that requires no tokens."""


class TokenFinder(Protocol):
    """The part of a `Store` that authentication uses."""

    async def find_token(self, digest: str) -> Token | None: ...


class Failures:
    """Counters of unknown tokens by address in windows of `FAILURE_SECONDS`; the oldest of too many are dropped."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, address: str) -> None:
        since, count = self._counts.get(address, (self._clock(), 0))
        if self._clock() - since >= FAILURE_SECONDS:
            since, count = self._clock(), 0
        self._counts[address] = since, count + 1
        self._counts.move_to_end(address)
        if len(self._counts) > MAX_ADDRESSES:
            self._counts.popitem(last=False)

    def wait(self, address: str) -> float:
        """Return the seconds that an address has to wait; 0.0 if it may go on."""
        since, count = self._counts.get(address, (0.0, 0))
        return max(0.0, since + FAILURE_SECONDS - self._clock()) if count >= MAX_FAILURES else 0.0


class _Known(NamedTuple):
    token: Token
    until: float


class Authenticator:
    """Identifies the callers of requests; if ``required`` is False, every caller is `LOCAL`."""

    def __init__(
        self,
        store: TokenFinder,
        required: bool,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.required = required
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._failures = Failures(monotonic)

    async def principal(self, request: Request) -> Principal:
        """Return the caller of a request, by its header or else its cookie; raise `ProblemError` (401, 429)."""
        if not self.required:
            return LOCAL
        plaintext = _credentials(request)
        if plaintext is None:
            raise _unauthenticated("send Authorization: Bearer <token>, or sign in")
        return _principal(await self.verify(plaintext, _address(request)))

    async def verify(self, plaintext: str, address: str) -> Token:
        """Return the stored token of a plaintext; raise `ProblemError` (401, 429)."""
        digest = digest_of(plaintext) if _FORM.fullmatch(plaintext) else None
        # The token is looked up before the address is checked, as callers behind a proxy share an address: one caller's
        # guesses must not stop the others. A lookup by key (0.1 ms in SQLite) costs far less than the request.
        known = self._cached(digest) or await self._find(digest)
        if known is None:
            raise self._refusal_of(address)
        if known.expires_at is not None and known.expires_at <= self._clock():
            raise _unauthenticated("the token has expired", 'error="invalid_token"')
        return known

    def _refusal_of(self, address: str) -> ProblemError:
        """Count an unknown token of an address; return the 401, or a 429 once the address has sent too many."""
        wait = self._failures.wait(address)
        if wait > 0:
            return ProblemError("too-many-attempts", headers={"retry-after": str(math.ceil(wait))})
        self._failures.note(address)
        return _unauthenticated("the token is unknown or was revoked", 'error="invalid_token"')

    def _cached(self, digest: str | None) -> Token | None:
        known = self._known.get(digest) if digest is not None else None
        return known.token if known is not None and known.until > self._monotonic() else None

    async def _find(self, digest: str | None) -> Token | None:
        found = await self._store.find_token(digest) if digest is not None else None
        if digest is None or found is None or not hmac.compare_digest(found.digest, digest):
            return None
        self._known[digest] = _Known(found, self._monotonic() + CACHE_SECONDS)
        self._known.move_to_end(digest)
        if len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)
        return found


def refuse_token_in_url(connection: HTTPConnection) -> None:
    """Raise `ProblemError` (400) for a query that contains a token, even a valid one, as it counts as leaked.

    `Guard` calls this for every path; the token itself is not looked at.
    """
    if not IN_URL.isdisjoint(name.lower() for name in connection.query_params):
        detail = "send the token as Authorization: Bearer, never in a URL, and revoke this one: it is in logs now"
        raise ProblemError("token-in-url", detail)


def _credentials(request: Request) -> str | None:
    """Return the token in a request; raise `ProblemError` (401) for another or a second `Authorization` header."""
    sent = request.headers.getlist("authorization")
    if not sent:
        return request.cookies.get(COOKIE) or None
    scheme, _, plaintext = sent[0].partition(" ")
    if len(sent) > 1 or scheme.lower() != "bearer":
        raise _unauthenticated("send one Authorization: Bearer <token>", 'error="invalid_request"')
    return plaintext.strip()


def _unauthenticated(detail: str, error: str = "") -> ProblemError:
    challenge = f'Bearer realm="sandspan"{", " if error else ""}{error}'
    return ProblemError("unauthenticated", detail, headers={"www-authenticate": challenge})


def _principal(token: Token) -> Principal:
    return Principal(token.name, token.tenant_id, token.role, token.id)


def _address(request: Request) -> str:
    """Return the address for which failures are counted: IPv4, or the /64 block that one customer has in IPv6.

    It is that of the connection's peer, or the one that a trusted proxy names (`create_app`).
    """
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:100]  # a trusted proxy sent something that is not an address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


# -- dependencies of routes --------------------------------------------------------------------------------

_BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description="A token of `host_client tokens create`.")
_COOKIE = APIKeyCookie(
    name=COOKIE, auto_error=False, scheme_name="cookie", description="Set by `POST /api/login`; for browsers."
)


def _authenticator(request: Request) -> Authenticator:
    found: Any = request.app.state.authenticator
    assert isinstance(found, Authenticator)
    return found


async def reader(
    request: Request,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],  # for the OpenAPI document
    _cookie: Annotated[str | None, Security(_COOKIE)],
) -> Principal:
    """Return the caller if it has a token; every role may read."""
    return await _authenticator(request).principal(request)


async def approver(principal: Annotated[Principal, Depends(reader)]) -> Principal:
    """Return the caller if it may decide approvals and answer questions."""
    return principal.require("approver")


async def operator(principal: Annotated[Principal, Depends(reader)]) -> Principal:
    """Return the caller if it may start, steer and close sessions."""
    return principal.require("operator")


Reader = Annotated[Principal, Depends(reader)]
Approver = Annotated[Principal, Depends(approver)]
Operator = Annotated[Principal, Depends(operator)]


# -- routes ------------------------------------------------------------------------------------------------

router = APIRouter(prefix="/api", tags=["auth"], route_class=JsonRoute)


class Login(BaseModel):
    """A token to keep in the browser's cookie."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(min_length=1, max_length=256)


class Me(BaseModel):
    """The caller; if ``auth`` is False, no token is required, and every caller is ``local`` without a tenant."""

    name: str
    tenant_id: str | None
    role: Role
    auth: bool


@router.post("/login", status_code=204, responses=PROBLEM_RESPONSES(*EVERYWHERE, *WITH_BODY))
async def login(request: Request, body: Login) -> Response:
    """Set a cookie with a token, which no script can read and no other site can send."""
    authenticator = _authenticator(request)
    response = Response(status_code=204)
    if not authenticator.required:
        return response  # no token is required
    token = await authenticator.verify(body.token, _address(request))
    seconds = COOKIE_SECONDS if token.expires_at is None else min(COOKIE_SECONDS, int(token.expires_at - time.time()))
    _set_cookie(response, request, body.token, max(0, seconds))
    return response


@router.post("/logout", status_code=204, responses=PROBLEM_RESPONSES("bad-request", "cross-origin", "internal"))
async def logout(request: Request) -> Response:
    """Delete the cookie; the token itself stays valid until it is revoked."""
    response = Response(status_code=204)
    _set_cookie(response, request, "", 0)
    return response


def _set_cookie(response: Response, request: Request, value: str, seconds: int) -> None:
    # The scheme is also https if a trusted proxy says so (`create_app`).
    secure = request.scope.get("scheme") == "https"
    response.set_cookie(COOKIE, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict")


@router.get("/me", responses=PROBLEM_RESPONSES(*EVERYWHERE))
async def me(request: Request, principal: Reader) -> Me:
    """Return the caller."""
    required = _authenticator(request).required
    return Me(name=principal.name, tenant_id=principal.tenant_id, role=principal.role, auth=required)
