"""The approvals and questions that wait for an answer: each is answered once, and a flood of them is bounded. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import TypeVar

from agent_runner.contract.protocol import ApprovalRequest, QuestionRequest
from host_client.errors import NotWaitingError

Request = TypeVar("Request", ApprovalRequest, QuestionRequest)

MAX_WAITING = 1000
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Most approvals and questions that may wait at once; more are a flood and are not taken."""


class OpenRequests:
    """Requests by their id."""

    def __init__(self) -> None:
        self._requests: dict[str, tuple[ApprovalRequest | QuestionRequest, int]] = {}
        self._answering: set[str] = set()

    @property
    def requests(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """Those that wait, the oldest first."""
        return {key: event for key, (event, _) in self._requests.items()}

    def add(self, event: ApprovalRequest | QuestionRequest, size: int) -> bool:
        """Let a request of ``size`` bytes wait; return whether it does: there is a bound, and each id counts once."""
        held = sum(size for _, size in self._requests.values())
        if len(self._requests) >= MAX_WAITING or held + size > MAX_WAITING_BYTES:
            return False
        key = event.data.approval_id if isinstance(event, ApprovalRequest) else event.data.question_id
        if key in self._requests:  # the first is the one that people are shown
            return False
        self._requests[key] = (event, size)
        return True

    def remove(self, key: str) -> None:
        """It waits no more."""
        self._requests.pop(key, None)

    @contextlib.contextmanager
    def answering(self, key: str, kind: type[Request]) -> Generator[Request]:
        """Answer a request in this block, once; if the answer cannot be delivered, it waits on.

        Raise `NotWaitingError`.
        """
        request, _ = self._requests.get(key, (None, 0))
        if not isinstance(request, kind) or key in self._answering:
            what = "approval" if kind is ApprovalRequest else "question"
            raise NotWaitingError(f"{what} {key!r} is unknown or was resolved already")
        self._answering.add(key)
        try:
            yield request
            self.remove(key)
        finally:
            self._answering.discard(key)
