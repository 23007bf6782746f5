"""Reads the events of a session in the background, also while the caller is busy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from dataclasses import dataclass

from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    CallbackRequest,
    CallbackResolved,
    CommandResult,
    End,
    Error,
    ErrorType,
    Log,
    QuestionRequest,
    QuestionResolved,
    Result,
    Start,
    Stop,
    ToolResult,
)
from host_client.errors import RunnerDiedError, SessionClosedError, StreamLostError

from ._callbacks import CallbackRunner
from ._commander import Commander
from ._reader import Fault
from ._shared import SharedParts, too_old_for
from ._stream import RunnerStream

MAX_REPORTED_FAULTS = 100
"""Maximum number of faults that are reported as errors; a flood of forged lines makes any number."""

_NOTED = (
    Start,
    ToolResult,
    ApprovalRequest,
    ApprovalResolved,
    QuestionRequest,
    QuestionResolved,
    CallbackRequest,
    CallbackResolved,
    CommandResult,
    Result,
    Error,
    Log,
    End,
)
"""Types of the events that the outcome, the commander and the host's functions need; most other events are text."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """The part of a journal that another host, which has died, has already passed to its caller.

    Events up to ``seen_seq`` restore the session's state and are not passed on again. ``agent_lost`` is the error that
    ends a session whose agent could not outlive its host. ``written_seq`` is the last event that was in the journal
    when the session was taken over: the dead host may have answered requests up to there.
    """

    seen_seq: int = 0
    agent_lost: str | None = None
    written_seq: int = 0


class SessionStream:
    """Reads the events of one runner and passes each to the session's parts and its outlet."""

    def __init__(
        self, shared: SharedParts, commander: Commander, callbacks: CallbackRunner, sdk_options: Collection[str]
    ) -> None:
        """Follow a session whose runner was given these options in documents."""
        self._shared = shared
        self._commander = commander
        self._callbacks = callbacks
        self._sdk_options = frozenset(sdk_options)
        self._faults = 0
        self._replay = Replay()
        self._replayed_seq = 0
        self._is_replaying = True
        self._caught_up = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def follow(self, source: RunnerStream, replay: Replay) -> None:
        """Start reading a runner's events, those of the replay first."""
        self._replay = replay
        if not replay.seen_seq:
            self._end_replay()
        self._reach(0)
        self._reading = asyncio.create_task(self._read(source))

    async def caught_up(self, patience: float) -> None:
        """Wait for the end of the replay; give it up if the journal brings no event for ``patience`` seconds."""
        while not self._caught_up.is_set():
            before = self._replayed_seq
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._caught_up.wait()
            if self._replayed_seq == before and not self._caught_up.is_set():
                _logger.warning(
                    "trace %s: the journal ends at event %d, before event %d, which the dead host had read",
                    self._shared.trace.root.trace_id,
                    before,
                    self._replay.seen_seq,
                )
                self._end_replay()

    async def cancel(self) -> None:
        """Stop reading, and end the outlet."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        self._end()

    def _end(self) -> None:
        self._shared.ended.set()
        self._commander.close()
        self._callbacks.close()
        self._caught_up.set()
        self._shared.outlet.finish()

    async def _read(self, source: RunnerStream) -> None:
        try:
            async for item, size in source.items():
                await self._take(item, size)
                if not isinstance(item, Fault):
                    self._reach(item.seq or 0)
        except Exception as error:  # reported to the caller, whose loop must end
            if isinstance(error, RunnerDiedError):
                self._shared.outcome.note_exit_code(error.exit_code)
            await self._fail(getattr(error, "error_type", "internal"), str(error))
        finally:
            self._end()

    async def _take(self, item: AnyEvent | Fault, size: int) -> None:
        if not isinstance(item, Fault) and item.seq is not None and item.seq <= self._replay.seen_seq:
            self._recall(item, item.seq, size)
            return
        if self._is_replaying:
            if isinstance(item, Fault) or item.seq is None:  # the dead host has reported it
                return
            self._end_replay()  # the journal lacks the last event that the dead host had read
        if isinstance(item, Fault):
            self._faults += 1
            if self._faults <= MAX_REPORTED_FAULTS:
                await self._shared.report("protocol", item.message)
        else:
            await self._show(item, size)

    async def _show(self, event: AnyEvent, size: int) -> None:
        """Process a new event, and pass it to the caller."""
        if self._replay.agent_lost is not None and isinstance(event, End):
            await self._fail("sandbox", self._replay.agent_lost)
        try:
            problem = self._shared.trace.observe(event, size)
        except (ValueError, OverflowError) as error:  # a forged value that earlier checks let through
            problem = f"an event has an impossible value: {error}"
        if problem is not None:
            await self._shared.report("protocol", problem)
        self._note(event, size)
        if isinstance(event, Start):
            await self._check_options(event)
        if not self._shared.outlet.offer(event, size):
            await self._shared.outlet.put(event, size)

    async def _check_options(self, event: Start) -> None:
        """Fail the session, and end its runner, if the runner is too old for what it was given."""
        ignored = sorted(self._sdk_options - set(event.data.sdk_options))
        if self._commander.sent_attachments and not event.data.takes_attachments:
            ignored.append("attachments")
        if ignored:
            await self._fail("invalid_request", too_old_for(ignored))
            with contextlib.suppress(SessionClosedError, StreamLostError):
                await self._commander.write(Stop())

    def _recall(self, event: AnyEvent, seq: int, size: int) -> None:
        """Restore the session's state from an event that the dead host has passed to its caller."""
        with contextlib.suppress(ValueError, OverflowError):  # a forged value, which the dead host has reported
            self._shared.trace.observe(event, size, replayed=True)
            self._note(event, size)
        self._replayed_seq = seq
        if seq == self._replay.seen_seq:
            self._end_replay()

    def _end_replay(self) -> None:
        """Let the policy reply to the requests that still wait; until now, the replay could contain their replies."""
        if self._is_replaying:
            self._is_replaying = False
            self._caught_up.set()
            self._commander.begin_deciding()

    def _reach(self, seq: int) -> None:
        """Let the host's functions be called, once the journal has been read that a dead host may have answered."""
        if seq >= self._replay.written_seq and self._replay.agent_lost is None:
            self._callbacks.begin()

    def _note(self, event: AnyEvent, size: int) -> None:
        if isinstance(event, _NOTED):
            self._shared.outcome.observe(event)
            self._commander.observe(event, size)
            self._callbacks.observe(event, size)

    async def _fail(self, error_type: ErrorType, message: str) -> None:
        self._shared.outcome.fail(error_type, message)
        await self._shared.report(error_type, message)
