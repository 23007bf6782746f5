"""Run one agent: start a turn for each prompt, one after the other, and end when no prompts can follow."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claude_agent_sdk import ClaudeSDKError, Message, ProcessError, ResultMessage, SystemMessage, Transport

from ._background_wait import BackgroundWait
from ._callbacks import Callbacks
from ._cli import GRACE_SECONDS, Cli, StderrLog
from ._config import Config, ConfigError
from ._control import Control
from ._events import Events
from ._failed_start import unprompted
from ._forwarding import ForwardingTransport
from ._model_access import ModelAccess
from ._past_cost import past_cost
from ._permissions import Permissions
from ._run_failure import RunFailure
from ._sdk_options import agent_options
from ._span_settings import common_attributes
from ._telemetry import SpanOutbox, SpanSink
from ._translate import Translator
from .contract.processes import Descendants
from .contract.protocol import EndData, EndReason, HeartbeatData, LogData, Prompt
from .contract.spans import Spans
from .contract.trace_context import TraceContext, from_fields

if TYPE_CHECKING:
    from ._deep_trace import DeepTrace
    from ._gateway import Gateway

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
        descendants: Descendants | None = None,
        gateway: Gateway | None = None,
        access: ModelAccess | None = None,
        deep_trace: DeepTrace | None = None,
    ) -> None:
        """Prepare a run; ``environ`` is the CLI's environment. Raise `ConfigError` if a setting is not valid.

        With ``descendants``, which require a process of its own, the run ends all of them when it ends. ``gateway`` and
        ``access`` are needed if ``environ`` leads to a gateway: it then tells of the model requests, and the past cost
        of a resumed conversation is added to its meter. ``deep_trace`` has been started.
        """
        self._config = config
        self._events = events
        self._sink = sink
        self._context = context
        self._environ = environ
        self._gateway = gateway
        self._access = access or ModelAccess(environ)
        self._deep_trace = deep_trace
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spans = Spans(common_attributes(config))
        self._first_span_id = self._spans.new_span_id()
        self._outbox = SpanOutbox(self._spans, sink)
        self._translator = Translator(config, events, self._spans, self._access, environ)
        self._turns = self._translator.turns
        self._permissions = Permissions(self._translator, events, config.approval_timeout)
        self._callbacks = Callbacks(config.callbacks, self._translator, events)
        self._stderr = StderrLog(events)
        self._cli = self._prepare_cli(transport, descendants)
        self.control = Control(
            config.prompt, events, self._translator, self._permissions, self._callbacks, self._cli, self._spawn
        )
        self._failure = RunFailure(self.control.changed.set)
        self._wait = BackgroundWait(config.background_timeout, events, self._translator, self.control)
        self._translator.agents.on_request = self.control.request_begun
        if gateway is not None:
            gateway.observe = self._translator.use_gateway(gateway.server, propagate=deep_trace is not None)
        if deep_trace is not None:
            deep_trace.begin(self._translator, sink)

    def _prepare_cli(self, transport: Transport | None, descendants: Descendants | None) -> Cli:
        options = agent_options(
            self._config,
            self._environ,
            # TRACEPARENT of the CLI and its tools names the first turn, as it cannot change between turns.
            replace(self._context, span_id=self._first_span_id),
            can_use_tool=self._permissions.can_use_tool,
            on_tool_end=self._translator.calls.executed,
            on_stderr=self._stderr.add,
            host_servers=self._callbacks.servers(),
            host_hooks=self._callbacks.hooks(),
            partial_messages=self._gateway is None or self._config.messages == "partial",
            deep_environ=self._deep_trace.environ if self._deep_trace is not None else {},
        )
        if transport is None and self._config.messages != "off":
            hide_partial = self._gateway is not None  # which makes the events of an answer's parts
            transport = ForwardingTransport(options, self._events, self._turns, hide_partial=hide_partial)
        return Cli(options, self._events, self._translator.calls.wait_for, transport, descendants)

    async def main(self) -> int:
        """Run to the end; return the exit code."""
        if self._config.resume is not None:
            spent = self._turns.spent = past_cost(self._environ, self._config.resume, self._report)
            if self._gateway is not None and self._gateway.meter is not None:
                self._gateway.meter.spent += spent.cost
        try:
            if await self._connect():
                await self._converse()
        except Exception as error:
            self._failure.of_runner(error)
        unfinished = await self._leave()
        if self.control.unprompted and not self.control.stopping and self._failure.data is None:
            return unprompted(self._events)
        code, reason = self._outcome()
        self._events.emit(EndData(reason=reason, exit_code=code, unfinished=unfinished))
        return code

    # -- turns ------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Connect to the CLI and the required servers; return False if that fails or the run ends without it."""
        try:
            return await self.control.unless_stopped(self._cli.connect()) and (
                not self._config.require_mcp or await self.control.unless_stopped(self._cli.mcp.require_all())
            )
        except ValueError as error:  # of the SDK for a bad option, such as the name of a skill
            self._failure.of_cli(ConfigError(str(error)))
        except Exception as error:  # the SDK raises exceptions of many types
            self._failure.of_cli(error, await self._refusal(error))
        return False

    async def _refusal(self, error: Exception) -> str | None:
        """Return the CLI's reason if it has ended before its first message because of a bad option."""
        is_refusal = isinstance(error, ProcessError) and error.exit_code == 1 and not self._turns.started
        return await self._stderr.refusal() if is_refusal else None

    async def _converse(self) -> None:
        """Start a turn whenever there is a prompt and none is under way."""
        control, turns = self.control, self._turns
        self._spawn(self._read())
        self._spawn(self._send_heartbeats())
        prepared = False
        while not self._finished():
            self._wait.update()
            if turns.takes_prompts and control.may_begin_turn:
                await self._start_turn(control.take_prompt())
            elif control.stopping and turns.current is not None:
                if not await self._turn_ends():
                    return
            else:
                await control.changed.wait()
            control.changed.clear()
            if not prepared and turns.started:
                # Not earlier, as importing in a thread would delay the `start` event.
                prepared = True
                self._spawn(asyncio.to_thread(self._sink.prepare))

    def _finished(self) -> bool:
        if self._failure.data is not None:
            return True
        return self._turns.current is None if self.control.stopping else self._wait.nothing_left

    async def _start_turn(self, prompt: Prompt) -> None:
        self._cli.reap()
        span_id, self._first_span_id = self._first_span_id, ""
        user_message_id = str(uuid.uuid4())
        turn = self._turns.begin(self._context_of(prompt), prompt, span_id, user_message_id)
        turn.interrupted = self.control.interrupt_early
        try:
            await self._cli.send_prompt(prompt, user_message_id)
        except ClaudeSDKError as error:
            self._failure.of_cli(error)

    def _context_of(self, prompt: Prompt) -> TraceContext:
        def report(remark: str) -> None:
            self._report(f"the prompt's {remark}")

        return from_fields(prompt.traceparent, prompt.tracestate or "", report) or self._context

    async def _turn_ends(self) -> bool:
        """Wait `GRACE_SECONDS` for an interrupted turn to end; return whether it has ended."""
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                while self._turns.current is not None and self._failure.data is None:
                    await self.control.changed.wait()
                    self.control.changed.clear()
        except TimeoutError:
            return False
        return True

    # -- messages of the CLI ----------------------------------------------------------------------

    async def _read(self) -> None:
        """Process the CLI's messages until it ends."""
        try:
            async for message in self._cli.client.receive_messages():
                if _is_unanswered(message):
                    await self._access.look()
                if not self._take(message):
                    return
                if isinstance(message, SystemMessage) and message.subtype == "init":
                    await self._report_missing_servers(message.data.get("mcp_servers") or ())
        except Exception as error:  # the SDK also raises plain exceptions
            self._failure.of_cli(error, await self._refusal(error))
        else:
            self._failure.of_cli(ProcessError("the CLI ended", exit_code=0))

    async def _report_missing_servers(self, listed: Iterable[Mapping[str, Any]]) -> None:
        """Report the MCP servers that a turn begins without: on its span, and if that is new in ``log`` events."""
        missing = await self._cli.mcp.missing(listed)
        if (turn := self._turns.current) is None:
            return
        for server in self._cli.mcp.changed(missing):
            self._events.emit(LogData(stream="runner", text=server.remark), turn.span)
        for server in missing:
            turn.span.add_event("mcp_server", self._spans.clock(), server.attributes)

    def _take(self, message: Message) -> bool:
        """Process a message; return False if the runner failed."""
        try:
            self._translator.receive(message)
            self._outbox.flush_soon(in_turn=self._turns.current is not None)
            self._wait.update()
        except Exception as error:
            self._failure.of_runner(error)
            return False
        match message:
            case ResultMessage():
                self.control.turn_ended()
            case SystemMessage(subtype="api_retry"):
                self.control.give_up()
            case SystemMessage() if message.subtype != "status":
                self.control.changed.set()
            case _:
                pass  # begins and ends no turn
        return True

    async def _send_heartbeats(self) -> None:
        """Send a heartbeat after each interval without an event, while a turn or a background task runs."""
        interval = self._config.heartbeat
        while True:
            silent = time.monotonic() - self._events.last_sent
            works = self._turns.current is not None or bool(self._translator.background.running)
            if works and silent >= interval:
                data = HeartbeatData(
                    silent_ms=round(silent * 1000, 3),
                    last_seq=self._events.last_seq,
                    tool_use_ids=list(self._translator.calls.by_id),
                )
                self._events.send_live(data, self._turns.current_span)
            await asyncio.sleep(interval if silent >= interval else interval - silent)

    # -- the end ----------------------------------------------------------------------------------

    async def _leave(self) -> list[str]:
        """End open waits, spans and processes, then flush telemetry, in the order that loses no event.

        Return the descriptions of the background tasks that this ends.
        """
        self._failure.is_final = True
        self.control.cancel_requests()
        self.control.requests.end()
        await asyncio.sleep(0)  # lets the cancelled waits emit their events
        busy = bool(self._translator.calls.by_id)
        unfinished = self._wait.report_unfinished()
        self._abort(unfinished)
        if busy or self._failure.data is not None or self.control.signal is not None:
            # The CLI takes 5 seconds to end while a tool runs, so its processes are ended first.
            await self._cli.end_descendants()
        await self._cli.disconnect()
        for text in await self._deep_trace.finish() if self._deep_trace is not None else ():
            self._events.emit(LogData(stream="telemetry", text=text))
        self._outbox.flush()
        if lost := await asyncio.to_thread(self._sink.close):
            self._events.emit(LogData(stream="telemetry", text=lost))
        for task in self._tasks:
            task.cancel()
        return unfinished

    def _abort(self, unfinished: Sequence[str]) -> None:
        """End what is open in the conversation, with the reason why the run ends."""
        failure, control = self._failure.data, self.control
        if failure is not None:
            self._begin_failed_turn()
            self._events.emit(failure, self._turns.current_span)
            self._translator.abort(failure.error_type, failure.message)
        elif control.stopping:
            self._translator.abort("cancelled", _SIGNALLED.get(control.signal or 0, "stopped"))
        elif unfinished:
            self._translator.abort("timeout", "still running in the background at the end of the run")
        else:
            self._translator.abort("internal", "the run ended")

    def _begin_failed_turn(self) -> None:
        """Begin the first turn if the run failed before it, so that its span says why."""
        control = self.control
        if self._turns.current is None and not self._turns.outcome.turns and not control.unprompted:
            prompt = control.take_prompt() if control.prompts else None
            context = self._context_of(prompt) if prompt else self._context
            self._turns.begin(context, prompt, self._first_span_id)

    def _outcome(self) -> tuple[int, EndReason]:
        if self.control.signal is not None:
            return self.control.signal, _SIGNALLED[self.control.signal]
        if self._failure.data is not None:
            return (2, "misconfigured") if self._failure.misconfigured else (3, "failed")
        outcome = self._turns.outcome
        code = 1 if outcome.failed else 130 if outcome.interrupted else 0
        return code, "stopped" if self.control.stopping else "completed"

    # -- helpers ----------------------------------------------------------------------------------

    def _report(self, text: str) -> None:
        self._events.emit(LogData(stream="runner", text=text))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
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
