"""The interface through which the gateway reports the requests that pass through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ._answers import AnswerEvent
from .contract.classify import Failure


class RequestObserver(Protocol):
    """Follows one request to the model; see `_gateway_chats.ChatRequest`."""

    @property
    def traceparent(self) -> str | None: ...

    def sent(self, body: bytes) -> None: ...

    def answered(self, status: int) -> None: ...

    def receive(self, event: AnswerEvent) -> None: ...

    def end(self, failure: Failure | None = None, message: str = "") -> None: ...


Observe = Callable[[Mapping[str, str]], RequestObserver | None]
"""Returns the observer of a request with these headers, whose names are in lower case."""
