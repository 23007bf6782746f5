"""One run: prompts in, turns one after the other, until there is nothing more to do."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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

from ._config import Config, ConfigError
from ._desk import RefusedError
from ._events import Events, misconfigured
from ._metering import Meter
from ._model_access import ModelAccess
from ._permissions import Permissions
from ._sdk_options import Spent, agent_options, imported, resumed_cost
from ._telemetry import SpanOutbox, SpanSink
from ._translate import Translator
from .contract import processes
from .contract.classify import Failure, classify
from .contract.oom import oom_kills
from .contract.protocol import AnyCommand, EndData, EndReason, ErrorData, Finish, Interrupt, LogData, Prompt, Stop
from .contract.sanitize import SANITIZERS, Content, Sanitizer, single_line
from .contract.spans import Spans, Value
from .contract.trace_context import TraceContext, from_fields

GRACE_SECONDS = 5.0
"""How long an interrupted turn may take to end before its processes are ended."""

LEAVE_SECONDS = 1.0
"""How long the CLI may take to end by itself; it would wait 5 seconds for what runs in the background."""

MAX_ATTRIBUTE = 1000
"""Characters of an attribute that the configuration puts on every span."""

NO_PROMPT = "no prompt: set AGENT_PROMPT, give --prompt, or send a prompt command"

_MAX_REMEMBERED = 1000
"""Ids of commands, by which a second delivery of the same is known."""

_MAX_STDERR_LINES = 200
_MAX_STDERR_LINE = 2000
_SIGNALLED: dict[int, EndReason] = {129: "terminated", 130: "interrupted", 143: "terminated"}


class Run:
    """The state of one run. All of it is touched from one event loop only."""

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
        meter: Meter | None = None,
        access: ModelAccess | None = None,
    ) -> None:
        """``environ`` is what the CLI gets.

        ``descendants`` is for a run that has its process to itself: it ends them all when it ends.
        ``meter`` is the gateway's, and is told what a resumed conversation has cost before.
        ``access`` is the way to the model where ``environ`` leads to a gateway.
        """
        self._config = config
        self._events = events
        self._sink = sink
        self._context = context
        self._environ = environ
        self._transport = transport
        self._meter = meter
        self._access = access or ModelAccess(environ)
        spans = Spans(common_attributes(config))
        self._outbox = SpanOutbox(spans, sink)
        self._translator = _translator(config, events, spans, self._access)
        self._first_span_id = spans.new_span_id()
        self._permissions = Permissions(self._translator, events, config.approval_timeout)
        self._prompts: deque[Prompt] = deque()
        self._taken: deque[str] = deque(maxlen=_MAX_REMEMBERED)
        if config.prompt is not None:
            self._prompts.append(Prompt(text=config.prompt))
        self._prompted = bool(self._prompts)
        self._more_prompts = True
        self._stopping = False
        self._signal: int | None = None
        self._failure: ErrorData | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._interrupt_early = False
        self._stderr_lines = 0
        self._leaving = False
        self._descendants = descendants
        self._oom_before = oom_kills()

    # -- from outside -----------------------------------------------------------------------------

    def command(self, command: AnyCommand) -> None:
        """Take one command, unless it has come before."""
        if command.command_id is not None:
            if command.command_id in self._taken:
                return
            self._taken.append(command.command_id)
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
        """Answer a command that cannot be followed; the run goes on."""
        self._events.emit(ErrorData(error_type="protocol", message=why))

    def end_of_input(self) -> None:
        """No command will come any more: nobody is there to approve anything."""
        self._more_prompts = False
        self._permissions.close()
        self._changed.set()

    def signalled(self, exit_code: int) -> None:
        """Take SIGHUP (129), SIGINT (130) or SIGTERM (143)."""
        self._signal = self._signal or exit_code
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._prompts.clear()
        self._interrupt()
        self._changed.set()

    def _interrupt(self) -> None:
        turn = self._translator.turn
        # A prompt that has not reached the model is a turn too, to the person who wants it to end.
        self._interrupt_early = bool(self._prompts) if turn is None else not self._translator.requested
        if turn is not None:
            turn.interrupted = True
        if turn is not None and not self._interrupt_early:
            self._permissions.cancel_all()
            self._spawn(self._interrupt_cli())

    async def _interrupt_cli(self) -> None:
        try:
            await self._client.interrupt()
        except Exception as error:  # the CLI may be gone already, which the reader tells
            self._events.emit(LogData(stream="runner", text=f"interrupt: {error}"))

    # -- the run ----------------------------------------------------------------------------------

    async def main(self) -> int:
        """Run to the end; return the exit code."""
        try:
            options = agent_options(
                self._config,
                self._environ,
                # What the CLI and its tools find in TRACEPARENT: the first turn, as the CLI outlives it.
                replace(self._context, span_id=self._first_span_id),
                can_use_tool=self._permissions.can_use_tool,
                on_tool_end=self._tool_ended,
                on_stderr=self._stderr,
            )
        except ConfigError as error:
            return misconfigured(self._events, str(error))
        self._read_past_cost()
        self._client = ClaudeSDKClient(options, transport=self._transport)
        try:
            await self._converse()
        except Exception as error:  # a fault of ours: the stream still ends as it should
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
        self._spawn(self._read())
        prepared = False
        while not self._finished():
            if self._prompts and self._translator.takes_prompts and not self._stopping:
                await self._start_turn(self._prompts.popleft())
            elif self._stopping and self._translator.turn is not None:
                if not await self._turn_ends():
                    return
            else:
                await self._changed.wait()
            self._changed.clear()
            if not prepared and self._translator.started:
                # Not before: importing in a thread holds up what is on its way to `start`.
                prepared = True
                self._spawn(asyncio.to_thread(self._sink.prepare))

    @property
    def _unprompted(self) -> bool:
        """Whether no prompt came and none can come."""
        return not self._more_prompts and not self._prompted

    def _finished(self) -> bool:
        if self._failure is not None:
            return True
        if self._stopping:
            return self._translator.turn is None
        return not self._more_prompts and not self._prompts and self._translator.idle

    async def _unless_stopped(self, connecting: asyncio.Future[None]) -> bool:
        """Wait for the connection; return False if it failed, or there is nothing to connect for any more."""
        while not connecting.done() and not self._stopping and not self._unprompted:
            changed = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait((connecting, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            self._changed.clear()
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait((connecting,))  # the client cannot be left while it connects
            return False
        try:
            await connecting
        except Exception as error:  # whatever the SDK raises here, there is no agent
            self._fail(error)
            return False
        return True

    async def _start_turn(self, prompt: Prompt) -> None:
        if self._descendants is not None:
            self._descendants.reap()
        span_id, self._first_span_id = self._first_span_id, ""
        self._translator.begin_turn(self._context_of(prompt), prompt.text, span_id)
        assert self._translator.turn is not None
        self._translator.turn.interrupted = self._interrupt_early
        try:
            await self._client.query(prompt.text)
        except ClaudeSDKError as error:
            self._fail(error)

    async def _turn_ends(self) -> bool:
        """Wait for an interrupted turn to end; return False when it does not."""
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                while self._translator.turn is not None and self._failure is None:
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        """Take the agent's messages, to the end of the CLI."""
        try:
            async for message in self._client.receive_messages():
                if _is_unanswered(message):
                    await self._access.look()
                if not self._take(message):
                    return
        except Exception as error:  # the SDK raises bare exceptions too
            self._fail(error)
        else:
            self._fail(ProcessError("the CLI ended", exit_code=0))
        finally:
            self._changed.set()

    def _take(self, message: Message) -> bool:
        """Take one message; return False after a fault of our own, which is not the CLI's."""
        try:
            self._translator.receive(message)
            self._outbox.flush_soon(in_turn=self._translator.turn is not None)
        except Exception as error:  # a fault of ours: told as such, and the stream ends as it should
            self._failure = ErrorData(error_type="internal", message=f"the runner failed: {error!r}"[:1000])
            return False
        match message:
            case ResultMessage():
                self._changed.set()
            case SystemMessage(subtype="api_retry"):
                self._give_up()
            case SystemMessage() if message.subtype != "status":
                self._changed.set()
            case SystemMessage() if self._interrupt_early:
                self._interrupt()  # a request to the model is under way: there is something to interrupt
            case _:
                pass  # begins and ends no turn, and there are many of them
        return True

    def _give_up(self) -> None:
        """End the turn where the CLI would ask the model again and that cannot help."""
        turn = self._translator.turn
        if turn is not None and turn.given_up is not None and not turn.interrupted:
            self._permissions.cancel_all()
            self._spawn(self._interrupt_cli())

    def _fail(self, error: Exception) -> None:
        if self._failure is None and not self._leaving:
            failure = failure_of(error, oom_killed=oom_kills() > self._oom_before)
            self._failure = ErrorData(
                error_type=failure.error_type, message=str(error)[:1000], retryable=failure.retryable
            )
        self._changed.set()

    # -- the end ----------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Close what is open, in the order that loses nothing: spans, processes, telemetry."""
        self._leaving = True
        self._permissions.cancel_all()
        await asyncio.sleep(0)  # the waits that were cancelled write their events
        busy = bool(self._translator.tools)
        if self._failure is not None:
            self._events.emit(self._failure, self._translator.turn.span if self._translator.turn else None)
            self._translator.abort(self._failure.error_type, self._failure.message)
        elif self._signal is not None or self._stopping:
            self._translator.abort("cancelled", _SIGNALLED.get(self._signal or 0, "stopped"))
        else:
            self._translator.abort("internal", "the run ended")
        if busy or self._failure is not None or self._signal is not None:
            # Asked politely, a CLI whose tool runs takes 5 seconds to go.
            await self._end_descendants()
        await self._disconnect()
        self._outbox.flush()
        if lost := await asyncio.to_thread(self._sink.close):
            self._events.emit(LogData(stream="telemetry", text=lost))
        for task in self._tasks:
            task.cancel()

    async def _disconnect(self) -> None:
        """Let the CLI go; what it left running in the background goes too."""
        leaving = asyncio.ensure_future(self._client.disconnect())
        await asyncio.wait((leaving,), timeout=LEAVE_SECONDS)
        await self._end_descendants()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await leaving
        except Exception as error:  # nothing can be done about it, but it is told
            self._events.emit(LogData(stream="runner", text=f"disconnect: {error!r}"))

    async def _end_descendants(self) -> None:
        if self._descendants is not None:
            await asyncio.to_thread(self._descendants.end)

    def _end(self) -> int:
        if self._unprompted and not self._stopping and self._failure is None:
            return misconfigured(self._events, NO_PROMPT)
        code, reason = self._outcome()
        self._events.emit(EndData(reason=reason, exit_code=code))
        return code

    def _outcome(self) -> tuple[int, EndReason]:
        if self._signal is not None:
            return self._signal, _SIGNALLED[self._signal]
        if self._failure is not None:
            return 3, "failed"
        outcome = self._translator.outcome
        code = 1 if outcome.failed else 130 if outcome.interrupted else 0
        return code, "stopped" if self._stopping else "completed"

    # -- helpers ----------------------------------------------------------------------------------

    def _context_of(self, prompt: Prompt) -> TraceContext:
        def tell(remark: str) -> None:
            self._events.emit(LogData(stream="runner", text=f"the prompt's {remark}"))

        return from_fields(prompt.traceparent, prompt.tracestate or "", tell) or self._context

    def _read_past_cost(self) -> None:
        if self._config.resume is None:
            return
        try:
            spent = resumed_cost(self._environ, self._config.resume)
        except (OSError, ValueError, KeyError, TypeError) as error:
            spent = None
            self._events.emit(LogData(stream="runner", text=f"the conversation's past cost: {error!r}"))
        if spent is None:
            text = "what the conversation cost before is not known: the first turn's cost_usd includes it"
            self._events.emit(LogData(stream="runner", text=text))
        spent = spent or Spent(0.0, {})
        self._translator.cost_before, self._translator.usage_before = spent
        if self._meter is not None:
            self._meter.spent += spent.cost

    async def _tool_ended(self, data: Any, tool_use_id: str | None, _context: Any) -> Any:
        """Take the CLI's own measure of a call (hooks PostToolUse and PostToolUseFailure)."""
        duration = data.get("duration_ms")
        if tool_use_id is not None and isinstance(duration, int | float):
            self._translator.executed(tool_use_id, float(duration), data.get("tool_response"))
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
    """Whether the CLI tells of a request that got no answer; it does not tell why."""
    match message:
        case SystemMessage(subtype="api_retry"):
            return message.data.get("error_status") is None
        case ResultMessage(is_error=True, terminal_reason="api_error"):
            return message.api_error_status is None
        case _:
            return False


def _translator(config: Config, events: Events, spans: Spans, access: ModelAccess) -> Translator:
    return Translator(
        events,
        spans,
        model=config.model,
        sanitize=sanitizer_of(config, config.content),
        sanitize_tools=sanitizer_of(config, config.tool_content),
        resumed=config.resume is not None,
        access=access,
    )


def common_attributes(config: Config) -> dict[str, Value]:
    """Return what every span of a run carries."""
    ids = {"user.id": config.user_id, "session.id": config.session_id, "tenant.id": config.tenant_id}
    given = {**config.attributes, **{name: value for name, value in ids.items() if value}}
    return {single_line(name, MAX_ATTRIBUTE): single_line(value, MAX_ATTRIBUTE) for name, value in given.items()}


def sanitizer_of(config: Config, content: Content) -> Sanitizer | None:
    """Return what a text goes through before it stands in a span; raise `ConfigError` for one that is not there."""
    if config.sanitizer is None or content == "none":
        return SANITIZERS[content]
    given = imported("AGENT_SANITIZER", config.sanitizer)

    def sanitize(text: str) -> str:
        try:
            return str(given(text))
        except Exception as error:  # anybody's code: it breaks no agent, and lets nothing through
            return f"[the sanitizer failed: {type(error).__name__}]"

    return sanitize


def failure_of(error: Exception, *, oom_killed: bool = False) -> Failure:
    """Return why the CLI or the SDK failed."""
    if isinstance(error, CLINotFoundError):
        return Failure("cli_crash", False)
    if "No conversation found" in str(error):
        return Failure("invalid_request", False)
    if isinstance(error, ProcessError) and error.exit_code == -9:
        return classify(oom_killed=oom_killed or None, process="cli")
    return classify(process="cli")
