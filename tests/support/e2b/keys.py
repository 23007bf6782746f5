"""Authentication of the REST API."""

from __future__ import annotations

from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .answers import error_response


class Keys(NamedTuple):
    """The keys of the SDK and the CLI."""

    api_key: str
    access_token: str

    def refusal(self, headers: Headers) -> str | None:
        """Return why a request is refused, or None."""
        if "x-api-key" in headers:
            return None if headers["x-api-key"] == self.api_key else "Invalid API key"
        if "authorization" in headers:
            right = headers["authorization"] == f"Bearer {self.access_token}"
            return None if right else "Invalid access token"
        return "no credentials found"


class RequireKey:
    """Admits only requests with a key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self._keys.refusal(Headers(scope=scope))
        answer = self._app if refusal is None else error_response(401, refusal)
        await answer(scope, receive, send)
