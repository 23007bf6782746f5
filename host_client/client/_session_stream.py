"""Reads the events of a session in the background, so that they keep flowing while the caller is busy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    End,
    Error,
    ErrorType,
    QuestionRequest,
    QuestionResolved,
    Result,
    Start,
    ToolResult,
    ToolUse,
)
from host_client.errors import RunnerDiedError
from host_client.telemetry import SessionTrace

from ._commander import Commander
from ._host_errors import tell
from ._outcome import SessionOutcome
from ._reader import Fault
from ._stream import RunnerStream
from .mailbox import Outlet

MAX_FAULTS_TOLD = 100

_NOTED = (
    *(Start, ToolUse, ToolResult, ApprovalRequest, ApprovalResolved, QuestionRequest, QuestionResolved),
    *(Result, Error, End),
)
"""Events that change what the session knows; most others are text."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replay:
    """The beginning of a journal that another host, which died, has shown already.

    Events up to ``seen_seq`` restore what the session knows and are not shown again. ``agent_lost`` is the error that
    ends a session whose agent could not outlive its host.
    """

    seen_seq: int = 0
    agent_lost: str | None = None


class SessionStream:
    """The events of one runner, on their way to the session's parts and the ``outlet``.

    ``ended`` is set when the last event has been read.
    """

    def __init__(
        self,
        trace: SessionTrace,
        outcome: SessionOutcome,
        commander: Commander,
        outlet: Outlet[AnyEvent],
        ended: asyncio.Event,
    ) -> None:
        self._trace = trace
        self._outcome = outcome
        self._commander = commander
        self._outlet = outlet
        self._ended = ended
        self._faults = 0
        self._replay = Replay()
        self._replayed_seq = 0
        self._is_replaying = True
        self._caught_up = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def follow(self, source: RunnerStream, replay: Replay) -> None:
        """Begin to read a runner's events, those of the replay first."""
        self._replay = replay
        if not replay.seen_seq:
            self._end_replay()
        self._reading = asyncio.create_task(self._read(source))

    async def caught_up(self, patience: float) -> None:
        """Wait for the end of the replay; give it up when the journal brings nothing for ``patience`` seconds."""
        while not self._caught_up.is_set():
            before = self._replayed_seq
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._caught_up.wait()
            if self._replayed_seq == before and not self._caught_up.is_set():
                _logger.warning(
                    "trace %s: the journal ends at event %d, before %d, which the dead host has seen",
                    self._trace.root.trace_id,
                    before,
                    self._replay.seen_seq,
                )
                self._end_replay()

    async def cancel(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._caught_up.set()
        self._outlet.finish()

    async def _read(self, source: RunnerStream) -> None:
        try:
            async for item, size in source.items():
                await self._take(item, size)
        except Exception as error:  # the caller's loop must end, and be told why
            if isinstance(error, RunnerDiedError):
                self._outcome.note_exit_code(error.exit_code)
            await self._fail(getattr(error, "error_type", "internal"), str(error))
        finally:
            self._end()

    async def _take(self, item: AnyEvent | Fault, size: int) -> None:
        if not isinstance(item, Fault) and item.seq is not None and item.seq <= self._replay.seen_seq:
            self._recall(item, item.seq, size)
            return
        if self._is_replaying:
            if isinstance(item, Fault) or item.seq is None:  # the dead host has told of it
                return
            self._end_replay()  # the journal lacks the last event that was seen
        if isinstance(item, Fault):
            self._faults += 1
            if self._faults <= MAX_FAULTS_TOLD:
                await self._tell("protocol", item.message)
        else:
            await self._show(item, size)

    async def _show(self, event: AnyEvent, size: int) -> None:
        """Take in an event that nobody has seen, and hand it to the caller."""
        if self._replay.agent_lost is not None and isinstance(event, End):
            await self._fail("sandbox", self._replay.agent_lost)
        try:
            problem = self._trace.observe(event, size)
        except (ValueError, OverflowError) as error:  # a forged value that no check before has caught
            problem = f"an event that cannot be followed: {error}"
        if problem is not None:
            await self._tell("protocol", problem)
        self._note(event, size)
        if not self._outlet.offer(event, size):
            await self._outlet.put(event, size)

    def _recall(self, event: AnyEvent, seq: int, size: int) -> None:
        """Take in an event that the dead host has shown."""
        with contextlib.suppress(ValueError, OverflowError):  # a forged value: the dead host has told of it
            self._trace.observe(event, size, replayed=True)
            self._note(event, size)
        self._replayed_seq = seq
        if seq == self._replay.seen_seq:
            self._end_replay()

    def _end_replay(self) -> None:
        """Let the policy decide the requests that still wait; before, the replay may have held their replies."""
        if self._is_replaying:
            self._is_replaying = False
            self._caught_up.set()
            self._commander.begin_deciding()

    def _note(self, event: AnyEvent, size: int) -> None:
        if isinstance(event, _NOTED):
            self._outcome.observe(event)
            self._commander.observe(event, size)

    async def _fail(self, error_type: ErrorType, message: str) -> None:
        self._outcome.fail(error_type, message)
        await self._tell(error_type, message)

    async def _tell(self, error_type: ErrorType, message: str) -> None:
        await tell(self._trace, self._outlet, error_type, message)
