"""A session: one sandbox, one runner, one trace, and a conversation over it.

::

    async with open_session("Fix the tests", options) as session:
        async for event in session:
            ...

A background task reads the sandbox, so that events keep flowing while the caller thinks; when the
caller thinks for too long the runner's journal holds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec.structs

from agent_runner.protocol import (
    PROTOCOL_VERSION,
    Answer,
    AnyCommand,
    AnyEvent,
    Approval,
    ApprovalRequest,
    ApprovalResolved,
    End,
    Error,
    ErrorData,
    ErrorType,
    Finish,
    Interrupt,
    Prompt,
    QuestionRequest,
    QuestionResolved,
    Result,
    Start,
    Stop,
    encode,
)
from agent_runner.trace_context import InvalidTraceParentError, TraceContext, parse_traceparent

from .config import AgentOptions, ApprovalPolicy, baggage, runner_environment
from .errors import (
    ConfigurationError,
    NotWaitingError,
    RunnerDiedError,
    SandboxError,
    SessionClosedError,
    StreamLostError,
)
from .mailbox import Mailbox
from .reader import Fault
from .sandbox import LocalSandbox, Process, Sandbox, SandboxInfo
from .stream import RunnerStream
from .telemetry import SessionTrace, Telemetry, Who, telemetry_of

_logger = logging.getLogger(__name__)

Approver = Callable[[ApprovalRequest], Awaitable[bool | Approval]]
"""Decides an approval: True, False, or a whole `Approval`."""

Request = TypeVar("Request", ApprovalRequest, QuestionRequest)

WRITE_ATTEMPTS = 9
"""How often a command is tried, over 13 seconds, where its delivery is unsure."""

MAX_FAULTS_TOLD = 100
MAX_WAITING = 1000
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Most approvals and questions that may wait at once; more are a flood and are not taken."""


@asynccontextmanager
async def open_session(
    prompt: str | None = None,
    options: AgentOptions | None = None,
    *,
    sandbox: Sandbox | None = None,
    approvals: ApprovalPolicy | Approver = "ask",
    telemetry: Telemetry | None = None,
    traceparent: str | None = None,
    tracestate: str = "",
    upload: Path | None = None,
    environ: Mapping[str, str] | None = None,
    stop_timeout: float = 10.0,
    session_id: str | None = None,
) -> AsyncGenerator[Session]:
    """Create a sandbox, start the runner in it, and clean both up at the end, whatever happens.

    ``approvals``: ``"ask"`` leaves each request to the caller's loop, ``"auto"`` and ``"deny"`` answer
    it, a function decides it. ``environ`` (default: this process's) gives the model's credentials.
    ``stop_timeout`` is how many seconds a runner that was told to stop may take before it is terminated,
    and again before it is killed. ``session_id`` is that of a session to go on with, where the sandbox is
    one that was kept; a new one by default.
    Raise `ConfigurationError` and `SandboxStartError`.
    """
    environ = os.environ if environ is None else environ
    options = options or AgentOptions()
    telemetry = telemetry or telemetry_of(environ)
    session = Session(
        options,
        sandbox or LocalSandbox(),
        approvals,
        telemetry,
        _caller(traceparent, tracestate),
        environ,
        stop_timeout,
        session_id or str(uuid.uuid4()),
    )
    try:
        await session.start(prompt, upload)
        yield session
    except BaseException as error:
        session.failed(error)
        raise
    finally:
        await session.close()


def _caller(traceparent: str | None, tracestate: str) -> TraceContext | None:
    if traceparent is None:
        return None
    try:
        return parse_traceparent(traceparent, tracestate)
    except InvalidTraceParentError as error:
        raise ConfigurationError(str(error)) from None


@dataclass(frozen=True)
class Failure:
    """Why a session failed."""

    error_type: ErrorType
    message: str


class Session:
    """A running conversation. Iterate over it for events, up to ``end``; see `open_session`."""

    def __init__(
        self,
        options: AgentOptions,
        sandbox: Sandbox,
        approvals: ApprovalPolicy | Approver,
        telemetry: Telemetry,
        caller: TraceContext | None,
        environ: Mapping[str, str],
        stop_timeout: float,
        session_id: str,
    ) -> None:
        self.id = session_id
        self.run_id = str(uuid.uuid4())
        """One host's part of the session: a session that is resumed has several."""
        self.options = options
        self.claude_session_id: str | None = None
        self.failure: Failure | None = None
        self.exit_code: int | None = None
        self.last_error: ErrorData | None = None
        self._hurried = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the runner's last event has been read; the caller may not have taken it yet."""
        self.info: SandboxInfo | None = None
        self._sandbox = sandbox
        self._approvals = approvals
        self._environ = environ
        self._preview = telemetry.preview
        self._stop_timeout = stop_timeout
        ids = {
            "session.id": self.id,
            "user.id": options.user_id,
            "tenant.id": options.tenant_id,
            "user.tier": options.user_tier,
        }
        common = {**options.attributes, **{name: value for name, value in ids.items() if value}}
        who = Who(session_id=self.id, user_id=options.user_id, tenant_id=options.tenant_id, tier=options.user_tier)
        self.trace = SessionTrace(telemetry, common, caller, who)
        self._process: Process | None = None
        self._faults = 0
        self._mailbox: Mailbox[AnyEvent] = Mailbox()
        self._requests: dict[str, tuple[ApprovalRequest | QuestionRequest, int]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.left_behind: str | None = None
        """Why the sandbox may still be there although the session is closed."""
        self._answering: set[str] = set()
        self._left: set[asyncio.Future[None]] = set()
        self._writing = asyncio.Lock()
        self._last_result: Result | None = None
        self.cost_usd = 0.0
        """What the turns of this session cost so far, in US dollars."""

    @property
    def trace_id(self) -> str:
        """The id of the trace that all of this is in."""
        return self.trace.root.trace_id

    @property
    def waiting(self) -> Mapping[str, ApprovalRequest | QuestionRequest]:
        """The approvals and questions that wait for an answer, by id."""
        return {key: event for key, (event, _) in self._requests.items()}

    # -- life -------------------------------------------------------------------------------------

    async def start(self, prompt: str | None, upload: Path | None) -> None:
        """Make the sandbox and start the runner (called by `open_session`)."""
        with self.trace.span("sandbox.create") as span:
            began = time.monotonic()
            self.info = await self._sandbox.create(self._metadata(prompt))
            milliseconds = round((time.monotonic() - began) * 1000, 3)
            span.attributes.update({"sandbox.id": self.info.id, "sandbox.kind": self.info.kind})
            span.attributes.update({"sandbox.creation_duration_ms": milliseconds, **self.info.attributes})
        with self.trace.current():
            if upload is not None:
                await self._sandbox.upload(upload)
            self._process = await self._sandbox.run(("run",), self._runner_environment(self.info))
            stream = RunnerStream(self._sandbox, self._process, self.info.journal, self._stop_timeout)
            self._pump = asyncio.create_task(self._read(stream))
            if prompt is not None:
                with contextlib.suppress(SessionClosedError):  # a runner that died at once: its stream tells why
                    await self.send(prompt)

    def _metadata(self, prompt: str | None) -> dict[str, str]:
        """Return what is noted on the sandbox: who it is for, and how to find and resume it."""
        noted = {
            "sandspan": "1",
            "sandspan.run_id": self.run_id,
            "session.id": self.id,
            "user.id": self.options.user_id,
            "tenant.id": self.options.tenant_id,
            "trace_id": self.trace_id,
            "traceparent": self.trace.context.traceparent,
            "prompt": self._preview(prompt) if prompt else None,
        }
        return {name: value for name, value in noted.items() if value}

    def _runner_environment(self, info: SandboxInfo) -> dict[str, str]:
        context = self.trace.context
        env = runner_environment(self.options, self.id, self._environ)
        env.update(TRACEPARENT=context.traceparent, BAGGAGE=baggage(self.options, self.id))
        if context.tracestate:
            env["TRACESTATE"] = context.tracestate
        if info.conversation is not None:
            env["AGENT_RESUME"] = info.conversation
        env.update(AGENT_CWD=info.work, AGENT_JOURNAL=info.journal)
        return env

    def failed(self, error: BaseException) -> None:
        """Note why the session ends early (called by `open_session`)."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
            self._fail("cancelled", "the session was cancelled")
            return
        error_type: ErrorType = getattr(error, "error_type", "internal")
        if self.failure is None and isinstance(error, SandboxError):  # none that the stream's end has told of
            self.trace.observe(self._error(error_type, str(error)))
        self._fail(error_type, str(error))

    def _fail(self, error_type: ErrorType, message: str) -> None:
        self.failure = self.failure or Failure(error_type, message[:1000])

    async def close(self) -> None:
        """Stop the runner, take its last words, remove the sandbox, end the trace. Again is no error.

        It goes to its end also when its caller is cancelled, which hurries it: nothing may be left behind.
        """
        self._closing = self._closing or asyncio.ensure_future(self._close())
        cancelled = False
        while not self._closing.done():
            try:
                await asyncio.shield(self._closing)
            except asyncio.CancelledError:
                cancelled = True
                self.hurry()
        self._closing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _close(self) -> None:
        await self._mailbox.close()
        try:
            with self.trace.span("sandbox.cleanup"):
                await self._stop_runner()
                await self._sandbox.close()
        except SandboxError as error:  # the run is over, and its result is worth more than the room it took
            self.left_behind = str(error)
            _logger.warning("sandbox %s may be left behind: %s", self.info.id if self.info else "", error)
        finally:
            for task in self._tasks:
                task.cancel()
            self._end_trace()

    def hurry(self) -> None:
        """Wait no longer for the runner to stop: kill it. The sandbox is still removed."""
        self._hurried.set()

    async def _stop_runner(self) -> None:
        if self._process is None or self._pump is None:
            return
        if not self.ended.is_set():
            await self._unless_hurried(self._process.write(encode(Stop())))
        for ask in (self._process.close_input, self._process.terminate):
            await self._unless_hurried(ask())
            await self._pump_ends()
            if self._pump.done():
                return
        with contextlib.suppress(SandboxError):
            async with asyncio.timeout(self._stop_timeout):
                await self._process.kill()
        await self._pump_ends()
        self._pump.cancel()
        await asyncio.wait((self._pump,))

    async def _unless_hurried(self, asking: Awaitable[None]) -> None:
        """Ask the runner for something, until hurried or for the stop timeout; that it cannot be heard is no error."""
        asked = asyncio.ensure_future(asking)
        hurried = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((asked, hurried), timeout=self._stop_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if asked.done():
            with contextlib.suppress(SandboxError):
                asked.result()
        else:
            # Left to itself and not cancelled, which the E2B SDK does not take well; it ends with the sandbox.
            self._left.add(asked)
            asked.add_done_callback(_forget)

    async def _pump_ends(self) -> None:
        """Wait for the stream's end, for the stop timeout or until hurried."""
        assert self._pump is not None
        hurried = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((self._pump, hurried), timeout=self._stop_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    def _end_trace(self) -> None:
        failure = self.failure
        if failure is None and self._last_result is not None and self._last_result.data.error_type:
            failure = Failure(self._last_result.data.error_type, self._last_result.data.subtype)
        why = self.failure or Failure("sandbox", "the runner never sent this span")
        self.trace.end_orphans(why.error_type, why.message)
        self.trace.close(failure.error_type if failure else None, failure.message if failure else "")

    # -- events -----------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[AnyEvent]:
        """Yield events as they come, each once and in order, up to the runner's end."""
        while (event := await self._mailbox.get()) is not None:
            yield event

    async def _read(self, stream: RunnerStream) -> None:
        """Take everything the runner says, to its end."""
        try:
            async for item, size in stream.items():
                await self._take(item, size)
        except Exception as error:  # the caller's loop must end, and be told why
            if isinstance(error, RunnerDiedError):
                self.exit_code = error.exit_code
            error_type: ErrorType = getattr(error, "error_type", "internal")
            self._fail(error_type, str(error))
            await self._tell(error_type, str(error))
        finally:
            self.ended.set()
            await self._mailbox.finish()

    async def _take(self, item: AnyEvent | Fault, size: int) -> None:
        if isinstance(item, Fault):
            self._faults += 1
            if self._faults <= MAX_FAULTS_TOLD:
                await self._tell("protocol", item.message)
            return
        try:
            problem = self.trace.observe(item, size)
        except (ValueError, OverflowError) as error:  # a forged value that nothing before has caught
            problem = f"an event that cannot be followed: {error}"
        if problem is not None:
            await self._tell("protocol", problem)
        self._follow(item, size)
        await self._mailbox.put(item, size)

    async def _tell(self, error_type: ErrorType, message: str) -> None:
        """Put an error of the host's own into the stream; it has no seq."""
        event = self._error(error_type, message)
        self.trace.observe(event)
        await self._mailbox.put(event, len(message))

    def _error(self, error_type: ErrorType, message: str) -> Error:
        root = self.trace.root
        data = ErrorData(error_type=error_type, message=message)
        return Error(v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data)

    def _follow(self, event: AnyEvent, size: int) -> None:
        """Keep what the session itself must know."""
        match event:
            case Start():
                self.claude_session_id = event.data.session_id
            case ApprovalRequest():
                if self._waits(event.data.approval_id, event, size):
                    self._decide(event)
            case QuestionRequest():
                if self._waits(event.data.question_id, event, size):
                    self._reply(event)
            case ApprovalResolved():
                self._taken(event.data.approval_id)
            case QuestionResolved():
                self._taken(event.data.question_id)
            case Result():
                self._last_result = event
                self.cost_usd += event.data.cost_usd
            case Error():
                self.last_error = event.data
            case End():
                self.exit_code = event.data.exit_code
                if event.data.reason in ("failed", "misconfigured"):
                    self._runner_failed()
            case _:
                pass

    def _runner_failed(self) -> None:
        """Note why the runner gave up: the error before its end. Earlier turns may have ended well."""
        why = self.last_error or ErrorData(error_type="internal", message="the runner failed and did not say why")
        self._fail(why.error_type, why.message)

    def _waits(self, key: str, event: ApprovalRequest | QuestionRequest, size: int) -> bool:
        """Let a request wait for its answer, within bounds."""
        held = sum(size for _, size in self._requests.values())
        if len(self._requests) >= MAX_WAITING or held + size > MAX_WAITING_BYTES:
            return False
        self._requests[key] = (event, size)
        return True

    def _taken(self, key: str) -> ApprovalRequest | QuestionRequest | None:
        event, _ = self._requests.pop(key, (None, 0))
        return event

    # -- what is decided without the caller ----------------------------------------------------------

    def _decide(self, event: ApprovalRequest) -> None:
        policy = self._approvals
        if callable(policy):
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

    # -- commands -----------------------------------------------------------------------------------

    async def send(self, text: str, *, traceparent: str | None = None, tracestate: str = "") -> None:
        """Begin the next turn, after the current one. Raise `SessionClosedError`."""
        caller = _caller(traceparent, tracestate)
        if caller is not None:
            self.trace.admit(caller.trace_id)
        await self._command(Prompt(text=text, traceparent=traceparent, tracestate=tracestate or None))

    async def approve(
        self,
        approval_id: str,
        *,
        updated_input: dict[str, Any] | None = None,
        remember: bool = False,
        decided_by: str | None = None,
    ) -> None:
        """Allow the call, with another input if one is given. Raise `NotWaitingError`."""
        await self._resolve(
            Approval(
                approval_id=approval_id,
                decision="allow",
                updated_input=updated_input,
                remember=remember,
                decided_by=decided_by or self.options.user_id,
            )
        )

    async def deny(self, approval_id: str, message: str | None = None, *, decided_by: str | None = None) -> None:
        """Refuse the call; the agent is told the message. Raise `NotWaitingError`."""
        by = decided_by or self.options.user_id
        await self._resolve(Approval(approval_id=approval_id, decision="deny", message=message, decided_by=by))

    async def _resolve(self, approval: Approval) -> None:
        with self._answers(approval.approval_id, ApprovalRequest) as request:
            # Bound to what was shown: an approval of anything else is refused by the runner.
            by = approval.decided_by or self.options.user_id
            bound = {"input_sha256": request.data.input_sha256, "decided_by": by}
            await self._command(msgspec.structs.replace(approval, **bound))

    async def answer(self, question_id: str, answers: Mapping[str, Any], *, decided_by: str | None = None) -> None:
        """Answer a question, by its text. Raise `NotWaitingError`."""
        with self._answers(question_id, QuestionRequest):
            by = decided_by or self.options.user_id
            await self._command(Answer(question_id=question_id, answers=dict(answers), decided_by=by))

    @contextlib.contextmanager
    def _answers(self, key: str, kind: type[Request]) -> Generator[Request]:
        """Answer a request that waits, once; if the answer cannot be delivered, it waits on."""
        request, _ = self._requests.get(key, (None, 0))
        if not isinstance(request, kind) or key in self._answering:
            what = "approval" if kind is ApprovalRequest else "question"
            raise NotWaitingError(f"{what} {key!r} is unknown or was resolved already")
        self._answering.add(key)
        try:
            yield request
            self._taken(key)
        finally:
            self._answering.discard(key)

    async def interrupt(self) -> None:
        """End the current turn; the conversation goes on."""
        await self._command(Interrupt())

    async def finish(self) -> None:
        """Send no more prompts: the runner ends when nothing is left to do. Approvals are still taken."""
        with contextlib.suppress(SessionClosedError):  # it has ended: nothing is left to do
            await self._command(Finish())

    async def download(self, target: Path) -> None:
        """Copy the agent's working directory to a folder."""
        with self.trace.current():
            await self._sandbox.download(target)

    async def _command(self, command: AnyCommand) -> None:
        """Write a command, and again while it is unsure whether the runner has it: it takes each only once.

        One after the other, so that they arrive in this order.
        """
        line = encode(msgspec.structs.replace(command, command_id=uuid.uuid4().hex))
        async with self._writing:
            for attempt in range(WRITE_ATTEMPTS):
                if self._process is None or self._closing is not None or self.ended.is_set():
                    raise SessionClosedError("the session has ended")
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


def _forget(asked: asyncio.Future[None]) -> None:
    """Take note that an answer came when nobody waited for it any more."""
    if not asked.cancelled():
        asked.exception()


def _default_answer(question: Mapping[str, Any], first_option: bool) -> str:
    options = question.get("options") or ()
    if first_option and options:
        return str(options[0].get("label"))
    return "Nobody is here to answer."
