"""What waits for a person: each request answered at most once, and never by anything but an answer.

An approval is bound to its request by an unguessable id that is good once and, where the answer
carries it, by the digest of the input that was shown; an answer, by the texts of the questions.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from .contract.approvals import NO_ONE
from .contract.protocol import Answer, Approval

Outcome = Literal["timeout", "cancelled", "deny"]
"""How a request ends that nobody answers."""


class Unanswered(NamedTuple):
    """Why there is no answer, and who or what decided that."""

    outcome: Outcome
    decided_by: str | None = None


Reply = TypeVar("Reply", Approval, Answer)


class PendingRequest(NamedTuple, Generic[Reply]):
    """One request that waits; ``fault`` says why a reply is not one to it, and None of one that is."""

    reply: asyncio.Future[Reply | Unanswered]
    fault: Callable[[Reply], str | None]


class RefusedError(ValueError):
    """An answer that answers nothing; the message says why."""


class Desk(Generic[Reply]):
    """The requests of one kind that wait, by id."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._waiting: dict[str, PendingRequest[Reply]] = {}
        self._used: set[str] = set()
        self._open = True

    def open(self, fault: Callable[[Reply], str | None]) -> str:
        """Register a request; return its id, which cannot be guessed. For ``fault`` see `PendingRequest`."""
        key = secrets.token_urlsafe(16)
        self._waiting[key] = PendingRequest(asyncio.get_running_loop().create_future(), fault)
        if not self._open:
            self._waiting[key].reply.set_result(Unanswered("deny", NO_ONE))
        return key

    async def wait(self, key: str, timeout: float) -> Reply | Unanswered:
        """Wait for the answer, ``timeout`` seconds at most; afterwards the id is used up."""
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
        """Deliver an answer; raise `RefusedError` if no request waits for it, which then waits on."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.reply.done():
            known = key in self._used or waiting is not None
            raise RefusedError(f"{self._kind} {key[:64]!r} {'was resolved already' if known else 'is unknown'}")
        if (fault := waiting.fault(reply)) is not None:
            raise RefusedError(f"{self._kind} {key[:64]!r}: {fault}")
        waiting.reply.set_result(reply)

    def cancel_all(self) -> None:
        """Resolve all that waits: the turn is over."""
        self._resolve_all(Unanswered("cancelled"))

    def close(self) -> None:
        """Nobody will answer any more: deny all that waits and all that comes."""
        self._open = False
        self._resolve_all(Unanswered("deny", NO_ONE))

    def _resolve_all(self, outcome: Unanswered) -> None:
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_result(outcome)
