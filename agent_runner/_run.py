"""Run one agent: start a turn for each prompt, one after the other, and end when no prompts can follow."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from claude_agent_sdk import (
    ClaudeSDKClient,
    ClaudeSDKError,
    CLINotFoundError,
    Message,
    ProcessError,
    ResultMessage,
    SystemMessage,
    Transport,
)

from ._call_context import in_call_context
from ._config import Config, ConfigError, config_directory
from ._events import Events
from ._failed_start import FailedStart, unprompted
from ._mcp import McpServers
from ._model_access import ModelAccess
from ._past_cost import past_cost
from ._permissions import Permissions
from ._requests import RefusedError
from ._sdk_options import agent_options
from ._span_settings import common_attributes
from ._telemetry import SpanOutbox, SpanSink
from ._timer import WhileTimer
from ._tool_results import exit_code_of, saved_size, whole_size
from ._translate import Translator
from .contract import processes
from .contract.classify import Failure, classify
from .contract.oom import oom_kills
from .contract.protocol import (
    AnyCommand,
    EndData,
    EndReason,
    ErrorData,
    Finish,
    HeartbeatData,
    Interrupt,
    LogData,
    Prompt,
    Stop,
)
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext, from_fields

if TYPE_CHECKING:
    from ._deep_trace import DeepTrace
    from ._gateway import Gateway

GRACE_SECONDS = 5.0
"""Seconds in which an interrupted turn must end before its processes are ended."""

LEAVE_SECONDS = 1.0
"""Seconds in which the CLI may end by itself; it would wait 5 seconds for background processes."""

WAKE_SECONDS = 10.0
"""Seconds in which the CLI must begin its turn after the end of a background task; it takes a tenth of a second."""

_MAX_REMEMBERED = 1000
"""Number of command ids that are kept to recognise repeated commands."""

_MAX_STDERR_LINES = 200
_MAX_STDERR_LINE = 2000
_SIGNALLED: dict[int, EndReason] = {129: "terminated", 130: "interrupted", 143: "terminated"}


class Run:
    """Runs one agent from its first prompt to its end. Its methods must be called in one event loop."""

    def __init__(
        self,
        config: Config,
        events: Events,
        sink: SpanSink,
        context: TraceContext,
        environ: Mapping[str, str],
        *,
        transport: Transport | None = None,
        descendants: processes.Descendants | None = None,
        gateway: Gateway | None = None,
        access: ModelAccess | None = None,
        deep_trace: DeepTrace | None = None,
    ) -> None:
        """Prepare a run; ``environ`` is the CLI's environment.

        With ``descendants``, which require a process of its own, the run ends all of them when it ends. ``gateway`` and
        ``access`` are needed if ``environ`` leads to a gateway: it then tells of the model requests, and the past cost
        of a resumed conversation is added to its meter. ``deep_trace`` has been started.
        """
        self._config = config
        self._events = events
        self._sink = sink
        self._context = context
        self._environ = environ
        self._transport = transport
        self._gateway = gateway
        self._access = access or ModelAccess(environ)
        spans = Spans(common_attributes(config))
        self._outbox = SpanOutbox(spans, sink)
        self._translator = Translator(config, events, spans, self._access)
        self._translator.agents.on_request = self._request_begun
        if gateway is not None:
            gateway.observe = self._translator.use_gateway(gateway.server, propagate=deep_trace is not None)
        self._deep_trace = deep_trace
        if deep_trace is not None:
            deep_trace.begin(self._translator, sink)
        self._first_span_id = spans.new_span_id()
        self._permissions = Permissions(self._translator, events, config.approval_timeout)
        self._prompts: deque[Prompt] = deque()
        self._command_ids: deque[str] = deque(maxlen=_MAX_REMEMBERED)
        if config.prompt is not None:
            self._prompts.append(Prompt(text=config.prompt))
        self._prompted = bool(self._prompts)
        self._more_prompts = True
        self._stopping = False
        self._signal: int | None = None
        self._failure: ErrorData | None = None
        self._misconfigured = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._interrupt_early = False
        self._stderr_lines = 0
        self._leaving = False
        self._unfinished: list[str] = []
        self._waited_long = False
        self._background_timer = WhileTimer(config.background_timeout, self._end_wait)
        self._own_turn_timer = WhileTimer(WAKE_SECONDS, self._expect_no_own_turn)
        self._descendants = descendants
        self._oom_before = oom_kills()

    # -- from outside -----------------------------------------------------------------------------

    def command(self, command: AnyCommand) -> None:
        """Execute a command, unless a command with its id was executed before."""
        if command.command_id is not None:
            if command.command_id in self._command_ids:
                return
            self._command_ids.append(command.command_id)
        match command:
            case Prompt():
                self._prompted = True
                self._prompts.append(command)
            case Interrupt():
                self._interrupt()
            case Stop():
                self._stop()
            case Finish():
                self._more_prompts = False
            case _:
                try:
                    self._permissions.answer(command)
                except RefusedError as refused:
                    self.refuse(str(refused))
        self._changed.set()

    def refuse(self, why: str) -> None:
        """Emit a ``protocol`` error for a command that cannot be executed; the run continues."""
        self._events.emit(ErrorData(error_type="protocol", message=why))

    def end_of_input(self) -> None:
        """Note that stdin has ended: no prompts follow, and all approvals are denied."""
        self._more_prompts = False
        self._permissions.close()
        self._changed.set()

    def signalled(self, exit_code: int) -> None:
        """End the run because of a signal: SIGHUP (129), SIGINT (130) or SIGTERM (143)."""
        self._signal = self._signal or exit_code
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._prompts.clear()
        self._interrupt()
        self._changed.set()

    def _interrupt(self) -> None:
        turn = self._translator.turns.current
        # A prompt that waits or has not reached the model must be interrupted too, and so must a turn that the CLI is
        # about to begin. The CLI has nothing to interrupt before a turn's first model request: it is sent then.
        comes = bool(self._prompts) or self._translator.turns.own_expected
        self._interrupt_early = comes if turn is None else not turn.requested
        if turn is not None:
            turn.interrupted = True
        if turn is None and not self._stopping:
            self._spawn(self._stop_background_tasks())
        elif turn is not None and not self._interrupt_early:
            self._permissions.cancel_all()
            self._spawn(self._interrupt_cli())

    def _request_begun(self) -> None:
        if self._interrupt_early:
            self._interrupt()  # now that there is a model request, the CLI can interrupt the turn

    async def _interrupt_cli(self) -> None:
        try:
            await self._client.interrupt()
        except Exception as error:  # the CLI may have ended, which `_read` reports
            self._events.emit(LogData(stream="runner", text=f"interrupt: {error}"))

    async def _stop_background_tasks(self) -> None:
        """Stop all background tasks: subagents by an interrupt, after which no turn follows, others one by one."""
        running = list(self._translator.background.running.values())
        if any(task.kind == "local_agent" for task in running):
            await self._interrupt_cli()
        for task in running:
            if task.kind != "local_agent":
                try:
                    await self._client.stop_task(task.id)
                except Exception as error:  # the task or the CLI may have ended
                    self._events.emit(LogData(stream="runner", text=f"stop of a background task: {error}"))

    # -- the run ----------------------------------------------------------------------------------

    async def main(self) -> int:
        """Run to the end; return the exit code."""
        try:
            options = agent_options(
                self._config,
                self._environ,
                # TRACEPARENT of the CLI and its tools names the first turn, as it cannot change between turns.
                replace(self._context, span_id=self._first_span_id),
                can_use_tool=self._permissions.can_use_tool,
                on_tool_end=self._tool_ended,
                on_stderr=self._stderr,
                partial_messages=self._gateway is None,
                deep_environ=self._deep_trace.environ if self._deep_trace is not None else {},
            )
        except ConfigError as error:
            await self._end_deep_trace()
            failed = FailedStart(self._config, self._events, self._sink, self._context)
            return failed.misconfigured(str(error))
        options.mcp_servers = in_call_context(cast("dict[str, Any]", options.mcp_servers), self._span_of_call)
        self._read_past_cost()
        self._client = ClaudeSDKClient(options, transport=self._transport)
        self._mcp = McpServers(self._client, cast("dict[str, Any]", options.mcp_servers))
        try:
            await self._converse()
        except Exception as error:  # a bug in the runner must not prevent the `end` event
            self._failure = ErrorData(error_type="internal", message=f"the runner failed: {error!r}"[:1000])
        await self._leave()
        return self._end()

    async def _converse(self) -> None:
        """Connect, then start a turn whenever there is a prompt and none is under way."""
        connecting = asyncio.ensure_future(self._client.connect())
        if not await self._unless_stopped(connecting):
            return
        if self._descendants is not None:
            self._descendants.started()
        if self._config.require_mcp and not await self._unless_stopped(asyncio.ensure_future(self._mcp.require_all())):
            return
        self._spawn(self._read())
        self._spawn(self._send_heartbeats())
        prepared = False
        while not self._finished():
            self._background_timer.update(self._only_background_left)
            if self._prompts and self._translator.turns.takes_prompts and not self._stopping:
                await self._start_turn(self._prompts.popleft())
            elif self._stopping and self._translator.turns.current is not None:
                if not await self._turn_ends():
                    return
            else:
                await self._changed.wait()
            self._changed.clear()
            if not prepared and self._translator.turns.started:
                # Not earlier, as importing in a thread would delay the `start` event.
                prepared = True
                self._spawn(asyncio.to_thread(self._sink.prepare))

    @property
    def _unprompted(self) -> bool:
        """Return whether no prompt was given and none can follow."""
        return not self._more_prompts and not self._prompted

    def _finished(self) -> bool:
        if self._failure is not None:
            return True
        if self._stopping:
            return self._translator.turns.current is None
        return self._only_background_left and (self._translator.idle or self._waited_long)

    @property
    def _only_background_left(self) -> bool:
        """Return whether no turn runs and no prompt can follow, so that only background tasks can delay the end."""
        return not self._more_prompts and not self._prompts and self._translator.turns.current is None

    def _end_wait(self) -> None:
        self._waited_long = True
        self._changed.set()

    def _expect_no_own_turn(self) -> None:
        if self._translator.turns.current is None:
            self._translator.turns.own_expected = False
            self._interrupt_early = False
        self._changed.set()

    async def _unless_stopped(self, connecting: asyncio.Future[None]) -> bool:
        """Wait for the connection to the CLI or its servers; return False if it failed or the run ends without it."""
        while not connecting.done() and not self._stopping and not self._unprompted:
            changed = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait((connecting, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            self._changed.clear()
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait((connecting,))  # the client cannot be disconnected while it connects
            return False
        try:
            await connecting
        except Exception as error:  # the SDK raises exceptions of many types
            self._fail(error)
            return False
        return True

    async def _start_turn(self, prompt: Prompt) -> None:
        if self._descendants is not None:
            self._descendants.reap()
        span_id, self._first_span_id = self._first_span_id, ""
        turn = self._translator.turns.begin(self._context_of(prompt), prompt.text, span_id)
        turn.interrupted = self._interrupt_early
        try:
            await self._client.query(prompt.text)
        except ClaudeSDKError as error:
            self._fail(error)

    async def _turn_ends(self) -> bool:
        """Wait `GRACE_SECONDS` for an interrupted turn to end; return whether it has ended."""
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                while self._translator.turns.current is not None and self._failure is None:
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        """Process the CLI's messages until it ends."""
        try:
            async for message in self._client.receive_messages():
                if _is_unanswered(message):
                    await self._access.look()
                if not self._take(message):
                    return
                if isinstance(message, SystemMessage) and message.subtype == "init":
                    await self._report_missing_servers(message.data.get("mcp_servers") or ())
        except Exception as error:  # the SDK also raises plain exceptions
            self._fail(error)
        else:
            self._fail(ProcessError("the CLI ended", exit_code=0))
        finally:
            self._changed.set()

    async def _report_missing_servers(self, listed: Iterable[Mapping[str, Any]]) -> None:
        """Report the MCP servers that a turn begins without: on its span, and if that is new in ``log`` events."""
        missing = await self._mcp.missing(listed)
        if (turn := self._translator.turns.current) is None:
            return
        for server in self._mcp.changed(missing):
            self._events.emit(LogData(stream="runner", text=server.remark), turn.span)
        for server in missing:
            turn.span.add_event("mcp_server", self._translator.spans.clock(), server.attributes)

    def _take(self, message: Message) -> bool:
        """Process a message; return False if the runner failed."""
        try:
            self._translator.receive(message)
            self._outbox.flush_soon(in_turn=self._translator.turns.current is not None)
            # Prompts and the end of the run wait for the CLI's own turn, so it is not expected for ever.
            self._own_turn_timer.update(self._translator.turns.own_expected)
        except Exception as error:  # a bug in the runner must not prevent the `end` event
            self._failure = ErrorData(error_type="internal", message=f"the runner failed: {error!r}"[:1000])
            return False
        match message:
            case ResultMessage():
                self._changed.set()
            case SystemMessage(subtype="api_retry"):
                self._give_up()
            case SystemMessage() if message.subtype != "status":
                self._changed.set()
            case _:
                pass  # begins and ends no turn
        return True

    async def _send_heartbeats(self) -> None:
        """Send a heartbeat after each interval without an event, while a turn or a background task runs."""
        interval = self._config.heartbeat
        while True:
            silent = time.monotonic() - self._events.last_sent
            works = self._translator.turns.current is not None or bool(self._translator.background.running)
            if works and silent >= interval:
                data = HeartbeatData(
                    silent_ms=round(silent * 1000, 3),
                    last_seq=self._events.last_seq,
                    tool_use_ids=list(self._translator.calls.by_id),
                )
                self._events.send_live(data, self._translator.turns.current_span)
            await asyncio.sleep(interval if silent >= interval else interval - silent)

    def _give_up(self) -> None:
        """Interrupt a turn whose model request is retried although a retry cannot succeed."""
        turn = self._translator.turns.current
        if turn is not None and turn.given_up is not None and not turn.interrupted:
            self._permissions.cancel_all()
            self._spawn(self._interrupt_cli())

    def _fail(self, error: Exception) -> None:
        if self._failure is None and not self._leaving:
            self._misconfigured = isinstance(error, ConfigError)
            failure = failure_of(error, oom_killed=oom_kills() > self._oom_before)
            self._failure = ErrorData(
                error_type=failure.error_type, message=str(error)[:1000], retryable=failure.retryable
            )
        self._changed.set()

    # -- the end ----------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """End open waits, spans and processes, then flush telemetry, in the order that loses no event."""
        self._leaving = True
        self._permissions.cancel_all()
        await asyncio.sleep(0)  # lets the cancelled waits emit their events
        busy = bool(self._translator.calls.by_id)
        self._report_unfinished()
        if self._failure is not None:
            self._begin_failed_turn()
            self._events.emit(self._failure, self._translator.turns.current_span)
            self._translator.abort(self._failure.error_type, self._failure.message)
        elif self._signal is not None or self._stopping:
            self._translator.abort("cancelled", _SIGNALLED.get(self._signal or 0, "stopped"))
        elif self._unfinished:
            self._translator.abort("timeout", "still running in the background at the end of the run")
        else:
            self._translator.abort("internal", "the run ended")
        if busy or self._failure is not None or self._signal is not None:
            # The CLI takes 5 seconds to end while a tool runs, so its processes are ended first.
            await self._end_descendants()
        await self._disconnect()
        await self._end_deep_trace()
        self._outbox.flush()
        if lost := await asyncio.to_thread(self._sink.close):
            self._events.emit(LogData(stream="telemetry", text=lost))
        for task in self._tasks:
            task.cancel()

    def _report_unfinished(self) -> None:
        """Report the background tasks that the end of the run ends."""
        self._unfinished = [task.description for task in self._translator.background.running.values()]
        after = f" {self._config.background_timeout:g} s after the last turn" if self._waited_long else ""
        for description in self._unfinished:
            text = f"ended unfinished, as it still ran in the background{after}: {description}"
            self._events.emit(LogData(stream="runner", text=text))

    def _begin_failed_turn(self) -> None:
        """Begin the first turn if the run failed before it, so that its span says why."""
        if self._translator.turns.current is None and not self._translator.turns.outcome.turns and not self._unprompted:
            prompt = self._prompts.popleft() if self._prompts else None
            context = self._context_of(prompt) if prompt else self._context
            self._translator.turns.begin(context, prompt.text if prompt else None, self._first_span_id)

    async def _disconnect(self) -> None:
        """Disconnect from the CLI and end the processes that it leaves in the background."""
        leaving = asyncio.ensure_future(self._client.disconnect())
        await asyncio.wait((leaving,), timeout=LEAVE_SECONDS)
        await self._end_descendants()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await leaving
        except Exception as error:  # it cannot be repaired, only reported
            self._events.emit(LogData(stream="runner", text=f"disconnect: {error!r}"))

    async def _end_deep_trace(self) -> None:
        """Send the spans of processes that wait for others, and report losses."""
        for text in await self._deep_trace.finish() if self._deep_trace is not None else ():
            self._events.emit(LogData(stream="telemetry", text=text))

    async def _end_descendants(self) -> None:
        if self._descendants is not None:
            await asyncio.to_thread(self._descendants.end)

    def _end(self) -> int:
        if self._unprompted and not self._stopping and self._failure is None:
            return unprompted(self._events)
        code, reason = self._outcome()
        self._events.emit(EndData(reason=reason, exit_code=code, unfinished=self._unfinished))
        return code

    def _outcome(self) -> tuple[int, EndReason]:
        if self._signal is not None:
            return self._signal, _SIGNALLED[self._signal]
        if self._failure is not None:
            return (2, "misconfigured") if self._misconfigured else (3, "failed")
        outcome = self._translator.turns.outcome
        code = 1 if outcome.failed else 130 if outcome.interrupted else 0
        return code, "stopped" if self._stopping else "completed"

    # -- helpers ----------------------------------------------------------------------------------

    def _context_of(self, prompt: Prompt) -> TraceContext:
        def report(remark: str) -> None:
            self._events.emit(LogData(stream="runner", text=f"the prompt's {remark}"))

        return from_fields(prompt.traceparent, prompt.tracestate or "", report) or self._context

    def _read_past_cost(self) -> None:
        if self._config.resume is None:
            return
        spent = self._translator.turns.spent = past_cost(self._environ, self._config.resume, self._report)
        if self._gateway is not None and self._gateway.meter is not None:
            self._gateway.meter.spent += spent.cost

    def _report(self, text: str) -> None:
        self._events.emit(LogData(stream="runner", text=text))

    async def _span_of_call(self, tool_id: str) -> Span | None:
        call = await self._translator.calls.wait_for(tool_id)
        return call.span if call is not None else None

    async def _tool_ended(self, data: Any, tool_use_id: str | None, _context: Any) -> Any:
        """Take the CLI's measurement of a tool call (hooks PostToolUse and PostToolUseFailure)."""
        duration = data.get("duration_ms")
        if tool_use_id is not None and isinstance(duration, int | float):
            output = data.get("tool_response")
            self._translator.calls.executed(
                tool_use_id,
                float(duration),
                data.get("tool_input") or {},
                exit_code_of(data.get("tool_name", ""), output, data.get("error")),
                whole_size(output) or saved_size(output, config_directory(self._environ)),
            )
        return {}

    def _stderr(self, line: str) -> None:
        self._stderr_lines += 1
        if self._stderr_lines <= _MAX_STDERR_LINES:
            self._events.emit(LogData(stream="stderr", text=line[:_MAX_STDERR_LINE]))
        elif self._stderr_lines == _MAX_STDERR_LINES + 1:
            self._events.emit(LogData(stream="runner", text="further lines of the CLI's stderr are left out"))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_unanswered(message: Message) -> bool:
    """Return whether the CLI reports a model request that got no answer."""
    match message:
        case SystemMessage(subtype="api_retry"):
            return message.data.get("error_status") is None
        case ResultMessage(is_error=True, terminal_reason="api_error"):
            return message.api_error_status is None
        case _:
            return False


_REFUSALS = ("No conversation found", "--resume requires a valid session ID")
"""Texts of the CLI, which has no codes for them, when it ends at once because of a bad setting."""

_NOT_A_PROGRAM = (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
"""Errors of starting a file that will never be a program."""


def failure_of(error: Exception, *, oom_killed: bool = False) -> Failure:
    """Return the classified failure for an exception of the CLI or the SDK."""
    if isinstance(error, ConfigError) or any(text in str(error) for text in _REFUSALS):
        return Failure("invalid_request", False)
    if isinstance(error, CLINotFoundError) or getattr(error.__cause__, "errno", None) in _NOT_A_PROGRAM:
        return Failure("cli_crash", False)
    if isinstance(error, ProcessError) and error.exit_code == -9:
        return classify(oom_killed=oom_killed or None, process="cli")
    return classify(process="cli")
