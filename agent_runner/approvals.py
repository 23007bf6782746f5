"""What waits for a person: each request answered at most once, and never by anything but an answer.

An approval is bound to its request by an unguessable id that is good once and, where the answer
carries it, by the digest of the input that was shown.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Generic, Literal, NamedTuple, TypeVar

from .protocol import Answer, Approval

NO_ONE = "runner:no-one-to-ask"
"""``decided_by`` when stdin had ended: the host is gone, so nobody can allow anything."""


Outcome = Literal["timeout", "cancelled", "deny"]
"""How a request ends that nobody answers."""


class Unanswered(NamedTuple):
    """Why there is no answer, and who or what decided that."""

    outcome: Outcome
    decided_by: str | None = None


Reply = TypeVar("Reply", Approval, Answer)


class Waiting(NamedTuple, Generic[Reply]):
    """One request that waits."""

    reply: asyncio.Future[Reply | Unanswered]
    input_sha256: str | None = None


class RefusedError(ValueError):
    """An answer that answers nothing; the message says why."""


class Desk(Generic[Reply]):
    """The requests of one kind that wait, by id."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._waiting: dict[str, Waiting[Reply]] = {}
        self._used: set[str] = set()
        self._open = True

    def open(self, input_sha256: str | None = None) -> str:
        """Register a request; return its id, which cannot be guessed."""
        key = secrets.token_urlsafe(16)
        self._waiting[key] = Waiting(asyncio.get_running_loop().create_future(), input_sha256)
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

    def answer(self, key: str, reply: Reply, input_sha256: str | None = None) -> None:
        """Deliver an answer; raise `RefusedError` if no request waits for it."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.reply.done():
            known = key in self._used or waiting is not None
            raise RefusedError(f"{self._kind} {key[:64]!r} {'was resolved already' if known else 'is unknown'}")
        if input_sha256 is not None and input_sha256 != waiting.input_sha256:
            raise RefusedError(f"{self._kind} {key[:64]!r}: input_sha256 is not that of the input in question")
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
