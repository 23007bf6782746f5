"""Writes a session's commands to its runner, and answers the requests that the approval policy decides."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from msgspec.structs import replace

from agent_runner.contract.protocol import (
    Answer,
    AnyCommand,
    AnyEvent,
    Approval,
    ApprovalRequest,
    ApprovalResolved,
    ErrorType,
    QuestionRequest,
    QuestionResolved,
    encode,
)
from host_client.errors import NotAskedError, NotWaitingError, SessionClosedError, StreamLostError
from host_client.sandbox import Process
from host_client.telemetry import SessionTrace

from ._host_errors import tell
from ._policy import Approver, reply_by_approver, reply_by_policy, verdict_on
from ._waiting import OpenRequests
from .mailbox import Outlet
from .options import ApprovalPolicy

WRITE_ATTEMPTS = 9
"""How often a command is tried, over 13 seconds, where its delivery is unsure."""


class Commander:
    """The commands to one runner, and the requests of the runner that wait for a reply.

    ``policy`` decides requests once `begin_deciding` was called. ``ended`` is set when the runner has ended.
    """

    def __init__(
        self,
        policy: ApprovalPolicy | Approver,
        user_id: str | None,
        trace: SessionTrace,
        outlet: Outlet[AnyEvent],
        ended: asyncio.Event,
    ) -> None:
        self._policy: ApprovalPolicy | Approver = policy
        self._user_id = user_id
        self._trace = trace
        self._outlet = outlet
        self._ended = ended
        self._process: Process | None = None
        self._expect: Callable[[], None] = lambda: None
        self._is_closed = False
        self._decides = False
        self._waiting = OpenRequests()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """Return the requests that wait for a reply, by id."""
        return self._waiting.requests

    def connect(self, process: Process, expect: Callable[[], None]) -> None:
        """Write commands to this runner from now on; ``expect`` is called before each, as the runner answers soon."""
        self._process = process
        self._expect = expect

    def close(self) -> None:
        """Refuse every further command with `SessionClosedError`."""
        self._is_closed = True

    def cancel(self) -> None:
        """End the replies that the policy is still working on."""
        for task in self._tasks:
            task.cancel()

    async def write(self, command: AnyCommand) -> None:
        """Write a command, and write it again while it is unsure whether the runner got it.

        The runner takes each ``command_id`` once, so a second copy does no harm. Commands are written one after the
        other and so arrive in order. Raise `SessionClosedError`, and `StreamLostError` after `WRITE_ATTEMPTS`.
        """
        line = encode(replace(command, command_id=command.command_id or uuid.uuid4().hex))
        async with self._writing:
            for attempt in range(WRITE_ATTEMPTS):
                if self._process is None or self._is_closed or self._ended.is_set():
                    raise SessionClosedError("the session has ended")
                self._expect()
                try:
                    with self._trace.current():
                        await self._process.write(line)
                except StreamLostError:
                    if attempt + 1 == WRITE_ATTEMPTS:
                        raise
                    with contextlib.suppress(TimeoutError):  # a runner that has ended is noticed in the meantime
                        async with asyncio.timeout(0.05 * 2**attempt):
                            await self._ended.wait()
                else:
                    return

    async def decide(self, reply: Approval | Answer) -> None:
        """Reply to a request that waits; without ``decided_by``, as the session's user.

        Raise `NotWaitingError`, `NotAskedError` and what `write` raises; after that the request waits on.
        """
        with self._waiting.answering(reply) as bound:
            by = bound.decided_by or self._user_id
            self._trace.tell(by)
            await self.write(replace(bound, decided_by=by))

    # -- requests -------------------------------------------------------------------------------------

    def observe(self, event: AnyEvent, size: int) -> None:
        """Let a request of ``size`` bytes wait for its reply, or note that one was resolved."""
        match event:
            case ApprovalRequest() | QuestionRequest():
                if self._waiting.add(event, size) and self._decides:
                    self._ask_policy(event)
            case ApprovalResolved():
                self._waiting.remove(event.data.approval_id)
            case QuestionResolved():
                self._waiting.remove(event.data.question_id)
            case _:
                pass

    def begin_deciding(self) -> None:
        """Let the policy decide what waits and what comes."""
        self._decides = True
        for request in self.waiting.values():
            self._ask_policy(request)

    def _ask_policy(self, request: ApprovalRequest | QuestionRequest) -> None:
        policy = self._policy
        if callable(policy):
            if isinstance(request, ApprovalRequest):  # questions are left to the caller's loop
                self._spawn(self._ask_approver(policy, request))
        elif (reply := reply_by_policy(policy, request)) is not None:
            self._spawn(self._deliver(reply))

    async def _ask_approver(self, approver: Approver, request: ApprovalRequest) -> None:
        try:
            reply = await reply_by_approver(approver, request)
        except Exception as error:  # the caller's function: whatever it raises is no permission
            await self._tell("internal", f"the approver failed, so the call is denied: {error!r}")
            reply = verdict_on(request, False, "approver")
        await self._deliver(reply)

    async def _deliver(self, reply: Approval | Answer) -> None:
        try:
            await self.decide(reply)
        except (NotWaitingError, SessionClosedError):
            return  # somebody else replied first, or the session is over
        except NotAskedError as error:
            await self._tell("protocol", f"the approver's decision does not fit, so the request waits: {error}")
        except StreamLostError as error:
            await self._tell("network", f"the approval could not be delivered, and waits on: {error}")

    async def _tell(self, error_type: ErrorType, message: str) -> None:
        await tell(self._trace, self._outlet, error_type, message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
