"""Writes a session's commands to its runner, and replies to requests by the session's approval policy."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from agent_runner.contract.protocol import (
    Answer,
    AnyCommand,
    AnyControl,
    AnyEvent,
    Approval,
    ApprovalRequest,
    ApprovalResolved,
    CommandResult,
    CommandResultData,
    Prompt,
    QuestionRequest,
    QuestionResolved,
    Start,
    encode,
)
from host_client.errors import (
    CommandRefusedError,
    ConfigurationError,
    NoAnswerError,
    NotAskedError,
    NotWaitingError,
    SessionClosedError,
    StreamLostError,
)
from host_client.sandbox import Process

from ._policy import Answerer, Approver, answerer_of, reply_by_approver, reply_by_policy, verdict_on
from ._shared import SharedParts, too_old_for
from ._waiting import OpenRequests
from .options import ApprovalPolicy

ANSWER_SECONDS = 70.0
"""Seconds to wait for the result of a command; the CLI has 60 to answer the runner."""

WRITE_ATTEMPTS = 9
"""Maximum number of attempts to write a command whose delivery is unsure; they take 13 seconds."""


class Commander:
    """Writes commands to one runner, and keeps the runner's requests that wait for a reply.

    ``policy`` decides requests after `begin_deciding` was called.
    """

    def __init__(self, shared: SharedParts, policy: ApprovalPolicy | Approver, user_id: str | None) -> None:
        self._shared = shared
        self._policy: ApprovalPolicy | Approver = policy
        self._user_id = user_id
        self._process: Process | None = None
        self._expect: Callable[[], None] = lambda: None
        self._is_closed = False
        self._decides = False
        self.sent_attachments = False
        """True if attachments were sent to the runner."""
        self._waiting = OpenRequests()
        self._known: frozenset[str] | None = None
        """Types of the commands that the runner knows; None until it has started."""
        self._results: dict[str, asyncio.Future[CommandResultData]] = {}
        """Where the results of commands that were sent are awaited, by their ids."""
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deciding: dict[str, asyncio.Task[None]] = {}
        """The caller's functions that decide requests, by the requests' ids."""

    @property
    def waiting(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """Return the requests that wait for a reply, by id."""
        return self._waiting.requests

    def connect(self, process: Process, expect: Callable[[], None]) -> None:
        """Write commands to this runner from now on; call ``expect`` before each, as the runner will answer soon."""
        self._process = process
        self._expect = expect

    def close(self) -> None:
        """Refuse every further command, and those that wait for their result, with `SessionClosedError`."""
        self._is_closed = True
        for result in self._results.values():
            if not result.done():
                result.set_exception(SessionClosedError("the session has ended"))

    def cancel(self) -> None:
        """Cancel the policy's replies that are not finished."""
        for task in self._tasks:
            task.cancel()

    async def write(self, command: AnyCommand) -> None:
        """Write a command; repeat it as long as its delivery is unsure.

        The runner runs each ``command_id`` once, so a second copy does no harm. Commands are written one after the
        other, so they arrive in order. Raise `SessionClosedError`, and `StreamLostError` after `WRITE_ATTEMPTS`.
        """
        line = encode(replace(command, command_id=command.command_id or uuid.uuid4().hex))
        self.sent_attachments |= isinstance(command, Prompt) and bool(command.content)
        async with self._writing:
            for attempt in range(WRITE_ATTEMPTS):
                if self._process is None or self._is_closed or self._shared.ended.is_set():
                    raise SessionClosedError("the session has ended")
                self._expect()
                try:
                    with self._shared.trace.current():
                        await self._process.write(line)
                except StreamLostError:
                    if attempt + 1 == WRITE_ATTEMPTS:
                        raise
                    with contextlib.suppress(TimeoutError):  # a runner that has ended is noticed in the meantime
                        async with asyncio.timeout(0.05 * 2**attempt):
                            await self._shared.ended.wait()
                else:
                    return

    async def request(self, command: AnyControl) -> Any:
        """Send a command that changes or asks a running agent, and return its answer, None if it has none.

        Raise `CommandRefusedError`, `NoAnswerError` after `ANSWER_SECONDS`, and the errors of `write`.
        """
        command_id = command.command_id or uuid.uuid4().hex
        result = self._results.setdefault(command_id, asyncio.get_running_loop().create_future())
        try:
            await self.submit(replace(command, command_id=command_id))
            async with asyncio.timeout(ANSWER_SECONDS):
                data = await asyncio.shield(result)
        except TimeoutError:
            raise NoAnswerError(
                f"{command.type}: no answer within {ANSWER_SECONDS:g} seconds; it may still be carried out. Events must"
                " be read meanwhile, as the answer comes with them"
            ) from None
        finally:
            self._results.pop(command_id, None)
            if result.done():
                result.exception()  # else asyncio logs one that nobody has seen
        if data.error is not None:
            raise CommandRefusedError(f"{command.type}: {data.error}")
        return data.value

    async def submit(self, command: AnyControl) -> None:
        """Send a command that changes or asks a running agent; its outcome is a ``command_result`` event.

        Without ``requested_by``, the session's user is named. Raise `ConfigurationError` for a wrong value,
        `CommandRefusedError` if the runner does not know the command, and the errors of `write`.
        """
        try:
            checked = msgspec.convert(msgspec.to_builtins(command), type(command))
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{command.type}: {error}") from None
        if self._known is not None and command.type not in self._known:
            raise CommandRefusedError(too_old_for([command.type]))
        by = command.requested_by or self._user_id
        self._shared.trace.tell(by)
        await self.write(replace(checked, requested_by=by))

    async def decide(self, reply: Approval | Answer) -> None:
        """Send a reply to a waiting request; without ``decided_by``, the session's user is named as the decider.

        Raise `NotWaitingError`, `NotAskedError` and the errors of `write`; the request then still waits.
        """
        with self._waiting.answering(reply) as bound:
            by = bound.decided_by or self._user_id
            self._shared.trace.tell(by)
            await self.write(replace(bound, decided_by=by))

    # -- requests -------------------------------------------------------------------------------------

    def observe(self, event: AnyEvent, size: int) -> None:
        """Add a request of ``size`` bytes to the waiting ones, or remove one that was resolved."""
        match event:
            case ApprovalRequest() | QuestionRequest():
                if self._waiting.add(event, size) and self._decides:
                    self._apply_policy(event)
            case ApprovalResolved():
                self._resolved(event.data.approval_id)
            case QuestionResolved():
                self._resolved(event.data.question_id)
            case Start():
                self._known = frozenset(event.data.commands)
            case CommandResult(data=CommandResultData(command_id=str(command_id))):
                result = self._results.get(command_id)
                if result is not None and not result.done():
                    result.set_result(event.data)
            case _:
                pass

    def _resolved(self, key: str) -> None:
        self._waiting.remove(key)
        if (deciding := self._deciding.pop(key, None)) is not None:
            deciding.cancel()  # such as that of a call whose turn was interrupted

    def begin_deciding(self) -> None:
        """Let the policy reply to the requests that wait and to all that follow."""
        self._decides = True
        for request in self.waiting.values():
            self._apply_policy(request)

    def _apply_policy(self, request: ApprovalRequest | QuestionRequest) -> None:
        policy = self._policy
        if callable(policy):
            if isinstance(request, ApprovalRequest):
                self._deciding[request.data.approval_id] = self._spawn(self._ask_approver(policy, request))
            elif (answerer := answerer_of(policy)) is not None:
                self._deciding[request.data.question_id] = self._spawn(self._ask_answerer(answerer, request))
            # other questions are left to the caller's loop
        elif (reply := reply_by_policy(policy, request)) is not None:
            self._spawn(self._deliver(reply))

    async def _ask_approver(self, approver: Approver, request: ApprovalRequest) -> None:
        try:
            reply = await reply_by_approver(approver, request)
        except Exception as error:  # an error in the caller's function must never allow the call
            await self._shared.report("internal", f"the approver failed, so the call is denied: {error!r}")
            reply = verdict_on(request, False, "approver")
        await self._deliver(reply)

    async def _ask_answerer(self, answerer: Answerer, request: QuestionRequest) -> None:
        try:
            reply = await answerer.answer(request)
        except Exception as error:
            await self._shared.report("internal", f"the approver failed, so the question is not answered: {error!r}")
            reply = reply_by_policy("deny", request)
        if reply is not None:
            await self._deliver(reply)

    async def _deliver(self, reply: Approval | Answer) -> None:
        try:
            await self.decide(reply)
        except (NotWaitingError, SessionClosedError):
            return  # the request was answered by another reply, or the session has ended
        except NotAskedError as error:
            await self._shared.report(
                "protocol", f"the approver's decision does not fit its request, which still waits: {error}"
            )
        except StreamLostError as error:
            await self._shared.report(
                "network", f"the approval could not be delivered, so its request still waits: {error}"
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
