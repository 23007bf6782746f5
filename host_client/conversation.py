"""What is said to a runner: prompts, answers to what waits for one, the end; by the caller or by a policy."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec.structs

from agent_runner.approvals import fault_of_answer
from agent_runner.protocol import (
    PROTOCOL_VERSION,
    Answer,
    AnyCommand,
    AnyEvent,
    Approval,
    ApprovalRequest,
    Error,
    ErrorData,
    ErrorType,
    Finish,
    Interrupt,
    Prompt,
    QuestionRequest,
    Stop,
    encode,
)

from .config import AgentOptions, ApprovalPolicy
from .errors import NotAskedError, NotWaitingError, SessionClosedError, StreamLostError
from .mailbox import Outlet
from .sandbox import Process
from .stream import RunnerStream
from .telemetry import SessionTrace, caller_of
from .waiting import Waiting

Approver = Callable[[ApprovalRequest], Awaitable[bool | Approval]]
"""Decides an approval: True, False, or a whole `Approval`."""

WRITE_ATTEMPTS = 9
"""How often a command is tried, over 13 seconds, where its delivery is unsure."""


class Conversation:
    """The caller's side of a session.

    Every command may be given a ``command_id``. The runner takes each id once: a command whose delivery is unsure,
    also as its sender died, can be sent again with the same one.
    """

    def __init__(
        self,
        options: AgentOptions,
        approvals: ApprovalPolicy | Approver,
        trace: SessionTrace,
        outlet: Outlet[AnyEvent],
    ) -> None:
        self.options = options
        self.trace = trace
        self.ended = asyncio.Event()
        """Set when the runner's last event has been read; the caller may not have taken it yet."""
        self._approvals = approvals
        self._process: Process | None = None
        self._stream: RunnerStream | None = None
        self._outlet = outlet
        self._waiting = Waiting()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """The approvals and questions that wait for an answer, by id."""
        return self._waiting.requests

    # -- commands -----------------------------------------------------------------------------------

    async def send(
        self, text: str, *, traceparent: str | None = None, tracestate: str = "", command_id: str | None = None
    ) -> None:
        """Begin the next turn, after the current one. Raise `SessionClosedError`."""
        caller = caller_of(traceparent, tracestate)
        if caller is not None:
            self.trace.admit(caller)
        prompt = Prompt(text=text, traceparent=traceparent, tracestate=tracestate or None, command_id=command_id)
        await self._command(prompt)

    async def approve(
        self,
        approval_id: str,
        *,
        updated_input: dict[str, Any] | None = None,
        remember: bool = False,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Allow the call, with another input if one is given. Raise `NotWaitingError`."""
        await self._resolve(
            Approval(
                approval_id=approval_id,
                decision="allow",
                updated_input=updated_input,
                remember=remember,
                decided_by=decided_by,
                command_id=command_id,
            )
        )

    async def deny(
        self,
        approval_id: str,
        message: str | None = None,
        *,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Refuse the call; the agent is told the message. Raise `NotWaitingError`."""
        await self._resolve(
            Approval(
                approval_id=approval_id,
                decision="deny",
                message=message,
                decided_by=decided_by,
                command_id=command_id,
            )
        )

    async def _resolve(self, approval: Approval) -> None:
        with self._waiting.answering(approval.approval_id, ApprovalRequest) as request:
            # Bound to what was shown: an approval of anything else is refused by the runner.
            by = approval.decided_by or self.options.user_id
            self.trace.tell(by)
            bound = {"input_sha256": request.data.input_sha256, "decided_by": by}
            await self._command(msgspec.structs.replace(approval, **bound))

    async def answer(
        self,
        question_id: str,
        answers: Mapping[str, Any],
        *,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Answer a question, by its whole text. Raise `NotWaitingError`, and `NotAskedError` for any other key."""
        with self._waiting.answering(question_id, QuestionRequest) as request:
            if (fault := fault_of_answer(answers, request.data.questions)) is not None:
                raise NotAskedError(fault)
            by = decided_by or self.options.user_id
            self.trace.tell(by)
            await self._command(
                Answer(question_id=question_id, answers=dict(answers), decided_by=by, command_id=command_id)
            )

    async def interrupt(self, *, command_id: str | None = None) -> None:
        """End the current turn; the conversation goes on."""
        await self._command(Interrupt(command_id=command_id))

    async def stop(self) -> None:
        """End the current turn, then the runner; its last events still come."""
        await self._command(Stop())

    async def finish(self) -> None:
        """Send no more prompts: the runner ends when nothing is left to do. Approvals are still taken."""
        with contextlib.suppress(SessionClosedError):  # it has ended: nothing is left to do
            await self._command(Finish())

    async def _command(self, command: AnyCommand) -> None:
        """Write a command, and again while it is unsure whether the runner has it: it takes each only once.

        One after the other, so that they arrive in this order.
        """
        line = encode(msgspec.structs.replace(command, command_id=command.command_id or uuid.uuid4().hex))
        async with self._writing:
            for attempt in range(WRITE_ATTEMPTS):
                if self._process is None or self._closing is not None or self.ended.is_set():
                    raise SessionClosedError("the session has ended")
                self._expect()
                try:
                    with self.trace.current():
                        await self._process.write(line)
                except StreamLostError:
                    if attempt + 1 == WRITE_ATTEMPTS:
                        raise
                    with contextlib.suppress(TimeoutError):  # a runner that has ended says so in the meantime
                        async with asyncio.timeout(0.05 * 2**attempt):
                            await self.ended.wait()
                else:
                    return

    def _expect(self) -> None:
        """Compare a silent stream with the journal soon: an answer to a command is due."""
        if self._stream is not None:
            self._stream.expect()

    # -- what is decided without the caller ----------------------------------------------------------

    def _asked(self, event: ApprovalRequest | QuestionRequest) -> None:
        """Let the policy, or the caller's function, see to a request that waits."""
        policy = self._approvals
        if isinstance(event, QuestionRequest):
            self._reply(event)
        elif callable(policy):
            self._spawn(self._decide_by(policy, event))
        elif policy != "ask":
            self._spawn(self._decided(event, policy == "auto", f"policy:{policy}"))

    async def _decide_by(self, approver: Approver, event: ApprovalRequest) -> None:
        try:
            verdict = await approver(event)
        except Exception as error:  # the caller's function: whatever it raises is no permission
            await self._tell("internal", f"the approver failed, so the call is denied: {error!r}")
            verdict = False
        if isinstance(verdict, Approval):
            with contextlib.suppress(NotWaitingError):
                await self._resolve(verdict)
        else:
            await self._decided(event, verdict, "approver")

    async def _decided(self, event: ApprovalRequest, allowed: bool, by: str) -> None:
        key = event.data.approval_id
        try:
            await (self.approve(key, decided_by=by) if allowed else self.deny(key, "Denied by policy.", decided_by=by))
        except (NotWaitingError, SessionClosedError):
            return  # somebody else was quicker, or it is over
        except StreamLostError as error:
            await self._tell("network", f"the approval could not be delivered, and waits on: {error}")

    def _reply(self, event: QuestionRequest) -> None:
        if self._approvals in ("auto", "deny"):
            answers = {
                str(question.get("question")): _default_answer(question, self._approvals == "auto")
                for question in event.data.questions
            }
            self._spawn(self.answer(event.data.question_id, answers, decided_by=f"policy:{self._approvals}"))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the host's own word ---------------------------------------------------------------------------

    async def _tell(self, error_type: ErrorType, message: str) -> None:
        """Put an error of the host's own into the stream; it has no seq."""
        event = self._error(error_type, message)
        self.trace.observe(event)
        await self._outlet.put(event, len(message))

    def _error(self, error_type: ErrorType, message: str) -> Error:
        root = self.trace.root
        data = ErrorData(error_type=error_type, message=message)
        return Error(v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data)


def _default_answer(question: Mapping[str, Any], first_option: bool) -> str:
    options = question.get("options") or ()
    if first_option and options:
        return str(options[0].get("label"))
    return "Nobody is here to answer."
