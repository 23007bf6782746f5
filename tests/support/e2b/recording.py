"""A record of the requests in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Recorded:
    """One request; ``body`` grows while it is read."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def line(self) -> str:
        """Return method and path."""
        return f"{self.method} {self.path}"

    def json(self) -> Any:
        """Return the body decoded."""
        return json.loads(self.body)


class Recording:
    """Notes every request before it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[Recorded] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        query = scope["query_string"].decode()
        recorded = Recorded(scope["method"], scope["path"], query, Headers(scope=scope))
        self.requests.append(recorded)

        async def noting() -> Message:
            message = await receive()
            recorded.body += message.get("body", b"")
            return message

        await self._app(scope, noting, send)
