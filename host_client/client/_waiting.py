"""Keeps the approval and question requests that wait for a reply. Their number is bounded. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

from msgspec.structs import replace

from agent_runner.contract.approvals import fault_of_approval, fault_of_reply, request_id_of
from agent_runner.contract.protocol import Answer, Approval, ApprovalRequest, QuestionRequest
from host_client.errors import NotAskedError, NotWaitingError

MAX_WAITING = 1000
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Limits of waiting requests, in number and in bytes, as a sandbox could send any number."""


class OpenRequests:
    """The requests of one session that wait for a reply; each takes one reply."""

    def __init__(self) -> None:
        self._requests: dict[str, tuple[ApprovalRequest | QuestionRequest, int]] = {}
        self._being_answered: set[str] = set()

    @property
    def requests(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """Return the waiting requests by id, the oldest first."""
        return {key: request for key, (request, _) in self._requests.items()}

    def add(self, request: ApprovalRequest | QuestionRequest, size: int) -> bool:
        """Add a request of ``size`` bytes; return False if there are too many, or one with its id waits already."""
        held = sum(size for _, size in self._requests.values())
        if len(self._requests) >= MAX_WAITING or held + size > MAX_WAITING_BYTES:
            return False
        key = request.data.approval_id if isinstance(request, ApprovalRequest) else request.data.question_id
        if key in self._requests:  # a repeated id must not replace the request that a person has been shown
            return False
        self._requests[key] = (request, size)
        return True

    def remove(self, key: str) -> None:
        """Remove a request that was resolved."""
        self._requests.pop(key, None)

    @contextlib.contextmanager
    def answering(self, reply: Approval | Answer) -> Generator[Approval | Answer]:
        """Check a reply, yield it with the digest of the input that was shown, and remove its request after the block.

        If the block raises, the request still waits. Raise `NotWaitingError` if no request has the reply's id or
        another reply to it is being sent, `NotAskedError` if the reply does not fit its request.
        """
        key = request_id_of(reply)
        request, _ = self._requests.get(key, (None, 0))
        if key in self._being_answered:
            request = None
        match reply, request:
            case Approval(), ApprovalRequest():
                fault = fault_of_approval(reply, request.data.input_sha256)
                reply = replace(reply, input_sha256=request.data.input_sha256)
            case Answer(), QuestionRequest():
                fault = fault_of_reply(reply, request.data.questions)
            case _:
                kind = "approval" if isinstance(reply, Approval) else "question"
                raise NotWaitingError(f"{kind} {key!r} is unknown or was resolved already")
        if fault is not None:
            raise NotAskedError(fault)
        self._being_answered.add(key)
        try:
            yield reply
            self.remove(key)
        finally:
            self._being_answered.discard(key)
