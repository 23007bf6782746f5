"""One session that this process owns: its agent, its log, its commands, and its end.

The agent's events are stored before any reader gets them. Commands are read from the store, in order, and sent at least
once; the runner executes each of them once. So the next process can go on from the store whenever this one is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agent_runner.contract.protocol import (
    PROTOCOL_VERSION,
    Answer,
    AnyControl,
    Approval,
    CommandResult,
    ControlCommand,
    Error,
    ErrorData,
    outcome_of_command,
)
from host_client.client.attachments import Attachment
from host_client.client.host_tools import HostTool
from host_client.client.options import AgentOptions
from host_client.client.session import (
    SPOOL_SECONDS,
    Session,
    SessionFailure,
    Whereabouts,
    common_attributes,
    open_session,
)
from host_client.client.takeover import take_over
from host_client.errors import (
    CommandRefusedError,
    ConfigurationError,
    NotAskedError,
    NotWaitingError,
    SandboxError,
    SandboxGoneError,
    SandspanError,
    SessionClosedError,
    StreamLostError,
)
from host_client.sandbox import Sandbox
from host_client.store.base import Note, NotOwnerError, SandboxRef, Store, StoredSession, StoreError
from host_client.telemetry import SessionTrace, Who
from host_client.telemetry import Telemetry as TelemetryPipeline

from . import _commands as c
from ._attachments import attached
from ._estimate import estimated_usd
from ._events import AdoptedData, ClosedData, CloseReason, PromptData, SandboxData
from ._feed import Feed
from ._kept import own
from ._log import SessionLog
from ._tasks import cancelled_at_end

LAST_WORDS_SECONDS = 10.0
"""Seconds that a runner has for its last events after the command to stop."""

GRACE_SECONDS = 60.0
"""Seconds after the expiry of a waiting request during which an idle session is not yet closed."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class House:
    """The settings that all sessions of this process share.

    ``sandbox`` and ``options`` return a session's own, from its creator's request. ``forget`` removes a sandbox that a
    dead process may have created for a session without having written it down. ``idle_seconds`` is the maximum time of
    a session without activity, ``silent_seconds`` that of a running turn or background task without an event, if
    that is longer.
    ``upload`` is the initial content of each session's working directory. ``host_tools`` returns a tenant's tools.
    """

    store: Store
    owner: str
    telemetry: TelemetryPipeline
    environ: Mapping[str, str]
    sandbox: Callable[[StoredSession], Sandbox]
    options: Callable[[StoredSession], AgentOptions]
    forget: Callable[[StoredSession], Awaitable[None]]
    upload: Path | None = None
    idle_seconds: float = 1800.0
    silent_seconds: float = 1800.0
    host_tools: Callable[[str], Sequence[HostTool]] = lambda tenant_id: ()


class Hosted:
    """Runs a session from its creation or takeover to its end; ``adopted``: another process owned it before."""

    def __init__(self, house: House, stored: StoredSession, feed: Feed, *, adopted: bool = False) -> None:
        self.record = stored.record
        self.log = SessionLog(house.store, house.owner, stored, feed)
        self._house = house
        self._adopted = adopted
        self._commands_done = stored.state.commands_done
        self._ending = asyncio.Event()
        self._hurried = asyncio.Event()
        self._why_closed: tuple[CloseReason, str | None] | None = None
        self._began = False
        self._is_abandoned = False
        self._session: Session | None = None
        self._own_spans: list[bytes] = []
        """The host's own spans that are not in the log yet."""

    # -- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the session to its end; return earlier if another process owns it, or a takeover is to be tried again.

        If cancelled, leave the sandbox running for the next process.
        """
        hosting = asyncio.ensure_future(self._host())
        try:
            async with cancelled_at_end(hosting, asyncio.ensure_future(self._watch_for_close(hosting))):
                try:
                    await asyncio.wait((hosting,))
                except asyncio.CancelledError:
                    self._is_abandoned = True
                    if self._session is not None:
                        await self._session.abandon()
                    raise
                if not hosting.cancelled():
                    hosting.result()
        finally:
            await self._release()

    async def _release(self) -> None:
        """Stop writing and give up the ownership of the session."""
        await self.log.leave()
        if not self.log.is_lost:
            with contextlib.suppress(StoreError):  # the lease expires by itself
                await self._house.store.release(self.record.id, self._house.owner)

    async def _host(self) -> None:
        failure: SessionFailure | None = None
        try:
            async with self._opened() as session:
                self._session = session
                try:
                    await self._introduce(session)
                    await self._converse(session)
                except NotOwnerError:
                    await self._let_go(session)
        except asyncio.CancelledError:
            if self._why_closed is None or self._is_abandoned:
                raise
        except Exception as error:  # whatever it is, the session ends, and its log must tell why
            if not isinstance(error, SandspanError):
                _logger.exception("session %s failed", self.record.id)
            if self._may_be_tried_again(error):
                _logger.warning("session %s cannot be taken over now, will try again: %s", self.record.id, error)
                return
            failure = SessionFailure(getattr(error, "error_type", "internal"), str(error)[:1000])
        if not self.log.is_lost:
            with contextlib.suppress(NotOwnerError):
                await self._conclude(failure)
        if self.log.is_lost:
            _logger.warning("session %s is owned by another process now", self.record.id)

    def _may_be_tried_again(self, error: Exception) -> bool:
        """Return whether a takeover failed for a reason that may pass; the sandbox is left as it is then."""
        if self._session is not None or self.log.state.whereabouts is None:
            return False
        return isinstance(error, SandboxError | ConfigurationError) and not isinstance(error, SandboxGoneError)

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Session]:
        stored = StoredSession(self.record, self.log.state)
        if self._adopted and stored.state.whereabouts is None:
            await self._house.forget(stored)
        opening = self._opening(stored)
        self._began = True
        async with opening as session:
            yield session

    def _opening(self, stored: StoredSession) -> AbstractAsyncContextManager[Session]:
        house, options = self._house, self._house.options(stored)
        common: dict[str, Any] = {
            "sandbox": house.sandbox(stored),
            "telemetry": house.telemetry,
            "environ": house.environ,
            "session_id": self.record.id,
            "root": self.record.root,
            "on_own_spans": self._keep,
            "outlet": self.log,
            "host_tools": house.host_tools(self.record.tenant_id),
        }
        if stored.state.whereabouts is None:
            return open_session(None, options, upload=house.upload, **common)
        whereabouts = msgspec.convert(stored.state.whereabouts, Whereabouts)
        return take_over(whereabouts, options, seen_seq=stored.state.seen_seq, **common)

    def _keep(self, otlp: bytes) -> None:
        """Keep spans of the host for the log.

        The log gets them with whereabouts that have them too, or when they are in the spool: if this process is killed,
        the next one can send all that the log has.
        """
        self._own_spans.append(own(otlp))

    def _log_own_spans(self) -> None:
        """Write the spans that were kept with the next events."""
        self.log.spans += self._own_spans
        self._own_spans.clear()

    async def _introduce(self, session: Session) -> None:
        """Write the sandbox and whereabouts of the session, so that another process can take it over."""
        assert session.info is not None
        if self._adopted and self._is_local:
            return  # a local agent ended with its service, so the session does not go on
        if self.log.state.whereabouts is not None:
            await self.log.say(AdoptedData(reason="the process that had it was gone", replica=self._house.owner))
            return
        self._note_whereabouts(session)
        ref = SandboxRef(id=session.info.id, kind=session.info.kind)
        took = round((time.time() - self.record.created_at) * 1000, 3)
        await self.log.say(SandboxData(sandbox_id=ref.id, kind=ref.kind, creation_ms=took), sandbox=ref)

    def _note_whereabouts(self, session: Session) -> None:
        """Write the whereabouts with the next events; a turn may have added a trace to them."""
        self.log.extras["whereabouts"] = msgspec.to_builtins(session.whereabouts)
        self._log_own_spans()

    async def _converse(self, session: Session) -> None:
        """Log the agent's events and carry out commands until the agent, a command or the idle time ends the session.

        Raise `NotOwnerError`, with nothing ended, if another process owns the session.
        """
        draining = asyncio.ensure_future(self.log.drain())
        serving = self._until(partial(self._carry_out_all, session))
        tasks = (draining, asyncio.ensure_future(serving), asyncio.ensure_future(self._watch_idle()))
        async with cancelled_at_end(*tasks):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._check_owner()
            if not draining.done():
                await self._unless_hurried(self._stop(session, draining))
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _stop(self, session: Session, draining: asyncio.Future[None]) -> None:
        """Stop the turn and the runner and log its last events; from now on, no command is accepted."""
        await self.log.change(closing=True)
        with contextlib.suppress(SandspanError):  # a runner that cannot be reached is killed later
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await session.stop()
        await asyncio.wait((draining,), timeout=LAST_WORDS_SECONDS)

    async def _unless_hurried(self, stopping: Coroutine[Any, Any, None]) -> None:
        """Wait until the runner has stopped, or `hurry` is called."""
        stopped, hurried = asyncio.ensure_future(stopping), asyncio.ensure_future(self._hurried.wait())
        async with cancelled_at_end(stopped, hurried):
            await asyncio.wait((stopped, hurried), return_when=asyncio.FIRST_COMPLETED)
        if not stopped.cancelled():
            stopped.result()

    async def _check_owner(self) -> None:
        """Raise `NotOwnerError` if another process owns the session, which a paused process may not have noticed."""
        if not self.log.is_lost:
            lost = await self.log.insist(lambda: self._house.store.renew([self.record.id], self._house.owner))
            self.log.is_lost = bool(lost)
        if self.log.is_lost:
            raise NotOwnerError(f"{self._house.owner} does not own the session {self.record.id}")

    async def _let_go(self, session: Session) -> None:
        """Leave the sandbox to the session's new owner; a sandbox that is not in the store is removed."""
        assert session.info is not None
        stored = await self.log.insist(lambda: self._house.store.get(self.record.id))
        known = stored.state.sandbox if stored is not None else None
        if known is not None and known.id == session.info.id:
            await session.abandon()

    async def _conclude(self, failure: SessionFailure | None) -> None:
        """Write the last event, with the reason for the session's end."""
        if not self._began:
            self._end_root(failure)
        await self._spool_spans()
        self._log_own_spans()
        await self.log.change()  # everything queued is written first: the last event has the total cost
        if self._session is None:
            if failure is not None:
                await self.log.add(self._error(failure))  # the agent itself has sent no event
        else:
            await self._log_unbegun_turns()
        reason, by = self._why_closed or ("ended", None)
        failure = failure or (self._session.failure if self._session is not None else None)
        if self._why_closed is not None and failure is not None and failure.error_type == "cancelled":
            failure = None  # the session was closed, and did not fail
        elif self._why_closed is None and failure is not None:
            reason = "lost" if self._adopted and self._is_local else "failed"
        data = ClosedData(
            reason=reason,
            cost_usd=self.log.state.cost_usd,
            estimated_usd=await self._estimated_usd(),
            error_type=failure.error_type if failure else None,
            message=failure.message if failure else None,
            closed_by=by,
        )
        await self.log.say(data)
        turns, cost = self.log.state.turns, self.log.state.cost_usd
        _logger.info("session %s ended (%s): %d turns, $%.4f", self.record.id, reason, turns, cost)

    async def _spool_spans(self) -> None:
        """Wait until the session's spans are in the spool, as no process takes over a session with a last event.

        The end of the session is not put off for longer than `SPOOL_SECONDS`.
        """
        if not await asyncio.to_thread(self._house.telemetry.write, SPOOL_SECONDS):
            _logger.warning(
                "session %s: its last spans were not written to the spool within %g s; "
                "they are lost if this process is killed before they are",
                self.record.id,
                SPOOL_SECONDS,
            )

    async def _estimated_usd(self) -> float:
        """Return the estimated cost in US dollars of a turn without a result; 0.0 if there is none."""
        if not self.log.state.busy or not self._house.telemetry.enabled:
            return 0.0
        stored = StoredSession(self.record, self.log.state)
        try:
            return await self.log.insist(lambda: estimated_usd(self._house.store, stored))
        except Exception:  # without an estimate, the last event must still be written
            _logger.exception("session %s: the cost of its unfinished turn cannot be estimated", self.record.id)
            return 0.0

    def _end_root(self, failure: SessionFailure | None) -> None:
        """End the root span of a session that was never opened."""
        request = self.record.request
        who = Who(session_id=self.record.id, user_id=request.get("user_id"), tenant_id=self.record.tenant_id)
        options = AgentOptions(user_id=who.user_id, tenant_id=who.tenant_id, user_tier=request.get("user_tier"))
        common = common_attributes(options, self.record.id)
        trace = SessionTrace(self._house.telemetry, common, self.record.root, who, self._keep)
        trace.close(failure.error_type if failure else None, failure.message if failure else "")

    async def _log_unbegun_turns(self) -> None:
        """Write an error event for each turn that was queued and not begun before the end of the session."""
        for _, command in await self._queued():
            if isinstance(command, c.PromptCommand):
                why = f"the turn {command.turn_id} was not begun, as the session ended first"
                await self.log.add(self._error(SessionFailure("cancelled", why)))

    @property
    def _is_local(self) -> bool:
        return self.log.state.sandbox is not None and self.log.state.sandbox.kind == "local"

    def _error(self, failure: SessionFailure) -> Error:
        root, data = self.record.root, ErrorData(error_type=failure.error_type, message=failure.message)
        return Error(v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data)

    def _refused(self, command: AnyControl, why: str) -> CommandResult:
        root, data = self.record.root, outcome_of_command(command, why)
        return CommandResult(
            v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data
        )

    def close(self, reason: CloseReason, by: str | None = None) -> None:
        """Ask the session to end; the first reason counts."""
        if self._why_closed is None:
            self._why_closed = (reason, by)
        self._ending.set()

    def hurry(self) -> None:
        """Kill the runner instead of waiting for it to stop; the sandbox is still removed."""
        self._hurried.set()
        if self._session is not None:
            self._session.hurry()

    def abandon(self) -> None:
        """Stop, without touching the sandbox, as another process owns the session."""
        self.log.is_lost = True
        self._ending.set()

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the agent's working directory; raise `SessionClosedError` if there is no sandbox yet."""
        if self._session is None:
            raise SessionClosedError("the session's sandbox is still being created: try again once it has started")
        return await self._session.read_file(path, max_bytes)

    async def _watch_idle(self) -> None:
        """Wait until the session is to be closed, and close it if it has been idle for too long."""
        while self._why_closed is None and not self.log.is_lost:
            left = self._idle_at() - time.monotonic()
            if left <= 0:
                self.close("inactive")
            with contextlib.suppress(TimeoutError):
                # The end of a turn moves this deadline and does not wake this task, so it looks again.
                async with asyncio.timeout(max(0.0, min(left, self._house.idle_seconds))):
                    await self._ending.wait()

    def _idle_at(self) -> float:
        """Return the time (of `time.monotonic`) at which the session will have been idle for too long.

        A running turn, with which each session begins, may be silent for `House.silent_seconds`, as a tool or the model
        may be, and so may work in the background. A request that waits for a person keeps the session open until it
        expires.
        """
        house, state = self._house, self.log.state
        may_be_silent = house.silent_seconds if state.busy or state.background or not state.turns else 0.0
        at = self.log.written_at + max(house.idle_seconds, may_be_silent)
        expires = max((each.expires_at for each in state.waiting), default=0.0)
        return max(at, time.monotonic() + expires + GRACE_SECONDS - time.time()) if expires else at

    # -- commands -----------------------------------------------------------------------------------------

    async def _watch_for_close(self, hosting: asyncio.Future[None]) -> None:
        """Close the session as soon as a close command is queued, even behind other commands."""
        await self._until(self._find_close)
        is_made = self._session is not None or self.log.state.whereabouts is not None
        if self._began and not is_made:  # a sandbox that another process created must be found first, to be removed
            hosting.cancel()

    async def _find_close(self) -> bool:
        """Look for a close command and obey it; return whether the session is to be closed."""
        for _, command in await self._queued():
            if isinstance(command, c.CloseCommand):
                self.close("closed", command.by)
        return self._why_closed is not None

    async def _until(self, look: Callable[[], Awaitable[bool]]) -> None:
        """Call a function now and after each pushed command, until it returns True."""
        store = self._house.store
        async with AsyncExitStack() as stack:
            notes = await self.log.insist(
                lambda: stack.enter_async_context(store.subscribe(self.record.id, only=Note.COMMANDS))
            )
            while not await look():
                await anext(notes, None)

    async def _queued(self) -> list[tuple[int, c.AnyCommand | None]]:
        """Return the commands that are not carried out yet, each after its position."""
        queued = await self.log.insist(lambda: self._house.store.commands(self.record.id, self._commands_done))
        return [(each.position, c.decode(each.data)) for each in queued]

    async def _carry_out_all(self, session: Session) -> bool:
        """Carry out all queued commands in order; return True once the session is to be closed."""
        for position, command in await self._queued():
            if self._why_closed is not None or isinstance(command, c.CloseCommand):
                return True
            command_id = f"{self.record.id}:{position}"
            if command is None:
                _logger.warning("session %s: a command of a later version is ignored", self.record.id)
            elif isinstance(command, c.PromptCommand):
                await self._prompt(session, command, position, command_id)
            elif isinstance(command, ControlCommand):
                await self._control(session, command, command_id)
            else:
                await self._carry_out(partial(_send, session, command, command_id))
            self._note_whereabouts(session)
            self._commands_done = self.log.extras["commands_done"] = position
        return False

    async def _prompt(self, session: Session, command: c.PromptCommand, position: int, command_id: str) -> None:
        """Log a prompt and send it, unless one of its attachments is no longer stored."""
        attachments, error = await self._attachments_of(session, command)
        if position > self.log.state.commands_logged or error is not None:
            data = PromptData(
                turn_id=command.turn_id,
                text=command.text,
                sent_by=command.by,
                attachments=command.attachments,
                error=error,
            )
            if error is not None:
                self.log.extras["commands_done"] = position  # written with the event, so that it is told once
            await self.log.say(data, commands_logged=position)
        if error is None:
            send = partial(session.send, command.text, attachments=attachments, command_id=command_id)
            await self._carry_out(partial(send, traceparent=command.traceparent, tracestate=command.tracestate))

    async def _control(self, session: Session, command: AnyControl, command_id: str) -> None:
        """Send a command to the running agent, or log why it cannot be sent."""
        command = msgspec.structs.replace(command, command_id=command.command_id or command_id)
        try:
            await self._carry_out(partial(session.submit, command))
        except CommandRefusedError as error:
            await self.log.add(self._refused(command, str(error)))

    async def _attachments_of(self, session: Session, command: c.PromptCommand) -> tuple[list[Attachment], str | None]:
        """Return the attachments of a prompt with their content, or why it cannot be sent."""
        if command.attachments and session.outcome.takes_attachments is False:
            return [], (
                "the prompt was not sent: the runner in this session's sandbox is too old for attachments; start a new"
                " session from a template that was built again"
            )
        found: list[Attachment] = []
        for each in command.attachments:
            file = await self.log.insist(partial(attached, self._house.store, self.record, each.id))
            if file is None:
                named = f" {each.name!r}" if each.name else ""
                return [], f"the prompt was not sent: its attachment{named} is no longer stored; send it again"
            found.append(Attachment(file.data, file.name))
        return found, None

    async def _carry_out(self, send: Callable[[], Awaitable[None]]) -> None:
        """Send a command to the runner until it arrives; the runner executes each command once."""
        while True:
            try:
                await send()
            except StreamLostError as error:
                _logger.warning("session %s: a command is sent again: %s", self.record.id, error)
            except (NotWaitingError, SessionClosedError) as error:
                _logger.info("session %s: a command came too late: %s", self.record.id, error)
                return
            except NotAskedError as error:  # checked here only if the log no longer has the question
                await self.log.add(
                    self._error(SessionFailure("protocol", f"an answer does not fit its question: {error}"))
                )
                return
            else:
                return


async def _send(session: Session, command: Approval | Answer | c.InterruptCommand, command_id: str) -> None:
    """Send a reply or an interrupt."""
    match command:
        case Approval() | Answer():
            await session.decide(msgspec.structs.replace(command, command_id=command_id))
        case c.InterruptCommand():
            await session.interrupt(command_id=command_id)
