"""Requests that wait for a reply of a person or of the host; each is resolved at most once.

A reply names its request by an id that cannot be guessed and is valid once. An approval may also carry the digest of
the input that was shown; an answer must use the texts of the questions.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from .contract.approvals import NO_ONE
from .contract.protocol import Answer, Approval, CallbackResponse

Outcome = Literal["timeout", "cancelled", "deny"]
"""Outcome of a request that got no reply."""


class Unanswered(NamedTuple):
    """Stands in place of a reply: how the request ended, and ``decided_by`` of a denial."""

    outcome: Outcome
    decided_by: str | None = None


Reply = TypeVar("Reply", Approval, Answer, CallbackResponse)


class PendingRequest(NamedTuple, Generic[Reply]):
    """A request that waits; ``fault`` returns an error message for a reply that does not fit, else None."""

    reply: asyncio.Future[Reply | Unanswered]
    fault: Callable[[Reply], str | None]


class RefusedError(ValueError):
    """A reply was refused; the message says why."""


class PendingRequests(Generic[Reply]):
    """Holds the requests of one kind that wait for a reply, by id."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._waiting: dict[str, PendingRequest[Reply]] = {}
        self._used: set[str] = set()
        self._open = True

    def open(self, fault: Callable[[Reply], str | None]) -> str:
        """Register a request and return its id. For ``fault`` see `PendingRequest`."""
        key = secrets.token_urlsafe(16)
        self._waiting[key] = PendingRequest(asyncio.get_running_loop().create_future(), fault)
        if not self._open:
            self._waiting[key].reply.set_result(Unanswered("deny", NO_ONE))
        return key

    async def wait(self, key: str, timeout: float) -> Reply | Unanswered:
        """Wait for the reply, for at most ``timeout`` seconds; afterwards the id is invalid."""
        future = self._waiting[key].reply
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            return Unanswered("timeout")
        finally:
            self._waiting.pop(key, None)
            self._used.add(key)

    def answer(self, key: str, reply: Reply) -> None:
        """Deliver a reply; raise `RefusedError` if no request waits for it or it does not fit the request."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.reply.done():
            known = key in self._used or waiting is not None
            raise RefusedError(f"{self._kind} {key[:64]!r} {'was resolved already' if known else 'is unknown'}")
        if (fault := waiting.fault(reply)) is not None:
            raise RefusedError(f"{self._kind} {key[:64]!r}: {fault}")
        waiting.reply.set_result(reply)

    def is_over(self, key: str) -> bool:
        """Return whether a request with this id waited for a reply, and does so no longer."""
        return key in self._used

    def cancel_all(self) -> None:
        """Resolve all waiting requests as cancelled."""
        self._resolve_all(Unanswered("cancelled"))

    def close(self) -> None:
        """Deny all waiting requests and all later ones: no host is left to answer."""
        self._open = False
        self._resolve_all(Unanswered("deny", NO_ONE))

    def _resolve_all(self, outcome: Unanswered) -> None:
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_result(outcome)
