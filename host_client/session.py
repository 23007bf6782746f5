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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent_runner.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    End,
    Error,
    ErrorData,
    ErrorType,
    QuestionRequest,
    QuestionResolved,
    Result,
    Start,
    Stop,
    encode,
)
from agent_runner.spans import Value

from .arguments import check_arguments
from .config import AgentOptions, ApprovalPolicy, baggage, runner_environment
from .conversation import Approver, Conversation
from .errors import ConfigurationError, RunnerDiedError, SandboxError, SessionClosedError
from .mailbox import Mailbox, Outlet
from .reader import Fault
from .sandbox import LocalSandbox, Process, Sandbox, SandboxInfo
from .stream import RunnerStream
from .telemetry import OnOwnSpans, Root, SessionTrace, Telemetry, Who, root_of, telemetry_of

_logger = logging.getLogger(__name__)

MAX_FAULTS_TOLD = 100

_FOLLOWED = (Start, ApprovalRequest, QuestionRequest, ApprovalResolved, QuestionResolved, Result, Error, End)


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
    root: Root | None = None,
    on_own_spans: OnOwnSpans | None = None,
    outlet: Outlet[AnyEvent] | None = None,
) -> AsyncGenerator[Session]:
    """Create a sandbox, start the runner in it, and clean both up at the end, whatever happens.

    ``approvals``: ``"ask"`` leaves each request to the caller's loop, ``"auto"`` and ``"deny"`` answer
    it, a function decides it. ``environ`` (default: this process's) gives the model's credentials.
    ``stop_timeout`` is how many seconds a runner that was told to stop may take before it is terminated,
    and again before it is killed. ``session_id`` is that of a session to go on with, where the sandbox is
    one that was kept; a new one by default. ``root`` is the session's root span where it was announced before
    (`root_of`), and takes the place of ``traceparent``; ``on_own_spans`` is called with the host's own spans as
    they end, as serialized OTLP requests. ``outlet`` takes the events as they come, in place of whoever iterates.
    Raise `ConfigurationError` and `SandboxStartError`.
    """
    check_arguments(
        prompt=prompt,
        options=options,
        sandbox=sandbox,
        approvals=approvals,
        telemetry=telemetry,
        traceparent=traceparent,
        tracestate=tracestate,
        upload=upload,
        environ=environ,
        stop_timeout=stop_timeout,
        session_id=session_id,
        root=root,
        on_own_spans=on_own_spans,
    )
    if root is not None and traceparent is not None:
        raise ConfigurationError("root and traceparent exclude each other: give the traceparent to root_of")
    environ = os.environ if environ is None else environ
    session = Session(
        options or AgentOptions(),
        sandbox or LocalSandbox(),
        approvals,
        telemetry or telemetry_of(environ),
        root or root_of(traceparent, tracestate),
        environ,
        stop_timeout,
        session_id or str(uuid.uuid4()),
        on_own_spans,
        outlet,
    )
    async with until_closed(session):
        await session.start(prompt, upload)
        yield session


@asynccontextmanager
async def until_closed(session: Session) -> AsyncGenerator[None]:
    """Close a session at the end of the block; an exception in it is why the session failed."""
    try:
        yield
    except BaseException as error:
        session.failed(error)
        raise
    finally:
        await session.close()


@dataclass(frozen=True)
class Failure:
    """Why a session failed."""

    error_type: ErrorType
    message: str


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """All that another process needs to take a session over (`take_over`), as JSON too.

    ``own_spans`` are those that the host itself has ended, as an OTLP request: it may die before it delivers them.
    """

    run_id: str
    info: SandboxInfo
    process_id: str
    trace_ids: tuple[str, ...]
    own_spans: bytes = b""


def common_attributes(options: AgentOptions, session_id: str) -> dict[str, Value]:
    """Return what is on every span of a session."""
    ids = {
        "session.id": session_id,
        "user.id": options.user_id,
        "tenant.id": options.tenant_id,
        "user.tier": options.user_tier,
    }
    return {**options.attributes, **{name: value for name, value in ids.items() if value}}


class Session(Conversation):
    """A running conversation. Iterate over it for events, up to ``end``; see `open_session`."""

    def __init__(
        self,
        options: AgentOptions,
        sandbox: Sandbox,
        approvals: ApprovalPolicy | Approver,
        telemetry: Telemetry,
        root: Root,
        environ: Mapping[str, str],
        stop_timeout: float,
        session_id: str,
        on_own_spans: OnOwnSpans | None = None,
        outlet: Outlet[AnyEvent] | None = None,
    ) -> None:
        common = common_attributes(options, session_id)
        who = Who(
            session_id=session_id,
            user_id=options.user_id,
            tenant_id=options.tenant_id,
            tier=options.user_tier,
            model=options.model,
            tools=tuple(rule.partition("(")[0] for rule in options.allowed_tools),
        )
        self._mailbox: Mailbox[AnyEvent] = Mailbox()
        if outlet is not None:
            self._mailbox.finish()  # nothing comes there: iterating ends at once
        trace = SessionTrace(telemetry, common, root, who, on_own_spans)
        super().__init__(options, approvals, trace, self._mailbox if outlet is None else outlet)
        self.id = session_id
        self.run_id = str(uuid.uuid4())
        """One host's part of the session: a session that is resumed has several."""
        self.info: SandboxInfo | None = None
        self.claude_session_id: str | None = None
        self.failure: Failure | None = None
        self.exit_code: int | None = None
        self.last_error: ErrorData | None = None
        self.cost_usd = 0.0
        """What the turns of this session cost so far, in US dollars."""
        self.left_behind: str | None = None
        """Why the sandbox may still be there although the session is closed."""
        self._sandbox = sandbox
        self._environ = environ
        self._preview = telemetry.preview
        self._stop_timeout = stop_timeout
        self._pump: asyncio.Task[None] | None = None
        self._faults = 0
        self._last_result: Result | None = None
        self._hurried = asyncio.Event()
        self._left: set[asyncio.Future[None]] = set()

    @property
    def trace_id(self) -> str:
        """The id of the trace that all of this is in."""
        return self.trace.root.trace_id

    @property
    def whereabouts(self) -> Whereabouts | None:
        """What another process needs to take over; None before the runner runs. `send` may add a trace to it."""
        if self.info is None or self._process is None:
            return None
        return Whereabouts(
            run_id=self.run_id,
            info=self.info,
            process_id=self._process.id,
            trace_ids=self.trace.trace_ids,
            own_spans=self.trace.own,
        )

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
            self._follow_runner(self._process, self.info)
            if prompt is not None:
                with contextlib.suppress(SessionClosedError):  # a runner that died at once: its stream tells why
                    await self.send(prompt)

    def _follow_runner(self, process: Process, info: SandboxInfo) -> None:
        stream = RunnerStream(self._sandbox, process, info.journal, self._stop_timeout)
        self._pump = asyncio.create_task(self._read(stream))

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
        self._outlet.close()
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

    async def abandon(self) -> None:
        """Leave the sandbox and its runner to another process that has taken them over: read and end nothing more.

        The session's span is that process's to end. Iterating ends; a later `close` does nothing.
        """
        self._closing = self._closing or asyncio.ensure_future(self._abandon())
        await asyncio.shield(self._closing)

    async def _abandon(self) -> None:
        self._outlet.close()
        for task in self._tasks:
            task.cancel()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait((self._pump,))
        await self._sandbox.leave()
        self.trace.leave()
        self.ended.set()
        self._outlet.forget()
        self._outlet.finish()

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
            self._outlet.finish()

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
        if not self._outlet.offer(item, size):
            await self._outlet.put(item, size)

    def _follow(self, event: AnyEvent, size: int) -> None:
        """Keep what the session itself must know."""
        if not isinstance(event, _FOLLOWED):
            return
        match event:
            case Start():
                self.claude_session_id = event.data.session_id
            case ApprovalRequest() | QuestionRequest():
                if self._waiting.add(event, size):
                    self._asked(event)
            case ApprovalResolved():
                self._waiting.remove(event.data.approval_id)
            case QuestionResolved():
                self._waiting.remove(event.data.question_id)
            case Result():
                self._last_result = event
                self.cost_usd += event.data.cost_usd
            case Error():
                self.last_error = event.data
            case End():
                self.exit_code = event.data.exit_code
                if event.data.reason in ("failed", "misconfigured"):
                    self._runner_failed()

    def _runner_failed(self) -> None:
        """Note why the runner gave up: the error before its end. Earlier turns may have ended well."""
        why = self.last_error or ErrorData(error_type="internal", message="the runner failed and did not say why")
        self._fail(why.error_type, why.message)

    # -- files --------------------------------------------------------------------------------------

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the agent's working directory; ``path`` is relative to that.

        Raise `FileRefusedError` or one of its kind, another `SandboxError`, and `SessionClosedError`.
        """
        if self.info is None or self._closing is not None:
            raise SessionClosedError("the session has ended, and its files with it")
        with self.trace.current():
            return await self._sandbox.read_file(path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy the agent's working directory to a folder."""
        with self.trace.current():
            await self._sandbox.download(target)


def _forget(asked: asyncio.Future[None]) -> None:
    """Take note that an answer came when nobody waited for it any more."""
    if not asked.cancelled():
        asked.exception()
