"""Reads all events of one runner, over as many streams as needed.

The live stream, the runner's stdout, is the fast path. If it is lost, has a gap, or is silent although the runner's
journal grows, the journal is read from the last event on; that stream is replaced in the same way. Every event is
yielded once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agent_runner.contract.classify import classify
from agent_runner.contract.protocol import AnyEvent
from host_client.errors import RunnerDiedError, SandboxError, SandboxGoneError, StreamLostError
from host_client.sandbox import Exit, Process, Sandbox
from host_client.sandbox.base import TEMPORARY

from ._output_reader import OutputReader
from ._reader import EventReader, Fault, Gap

MAX_ATTACHES = 30
MAX_PAUSE_SECONDS = 5.0
"""Limits of attempts to attach that bring no event: how many in a row, and the pause between two; 2 minutes in all."""

GRACE_SECONDS = 1.0
"""Seconds in which an event of the journal must arrive by the stream, before the stream is given up."""

_NOT_STARTED = (126, 127)
"""Exit codes of a shell for a program that cannot be run or does not exist."""

_NO_JOURNAL = 2
"""Exit code of `agent_runner attach` if there is no journal; a runner that has just been started has none yet."""

_START_SECONDS = 0.5
"""Seconds that a runner without a journal is watched before it counts as starting."""

_FAILED = 3
"""Exit code of a runner whose CLI or SDK failed."""


class RunnerStream:
    """Yields the events of one runner. A runner without an ``end`` event has ``patience`` seconds to exit."""

    def __init__(self, sandbox: Sandbox, process: Process, journal: str, patience: float) -> None:
        self._sandbox = sandbox
        self._process = process
        self._journal = journal
        self._patience = patience
        self._reader = EventReader()
        self._listener: OutputReader | None = None

    def expect(self) -> None:
        """Compare a silent stream with the journal soon, as a command was sent that the runner should answer."""
        if self._listener is not None:
            self._listener.expect()

    async def items(self) -> AsyncIterator[tuple[AnyEvent | Fault, int]]:
        """Yield events and faults, each with the length of its line in bytes, up to ``end``.

        Raise `RunnerDiedError` if the runner ended without an ``end`` event, `StreamLostError` if it can no longer be
        reached.
        """
        source, barren = self._process, 0
        while True:
            before, gap, lost = self._reader.last_seq, None, False
            try:
                async for chunk in self._chunks(source):
                    for item in self._reader.feed(chunk):
                        if isinstance(item, Gap):
                            gap = item
                        else:
                            yield item, self._reader.size
                    if gap is not None or self._reader.ended:
                        break
            except StreamLostError:
                gap, lost = None, True
            if self._reader.ended:
                break
            if source is not self._process:
                if gap is not None:
                    yield self._hole(gap), 0
                if gap is not None or lost:
                    await source.kill()
                elif (code := (await source.wait()).code) > 0 and not (code == _NO_JOURNAL and await self._starts()):
                    raise await self._died()
                barren = 0 if self._reader.last_seq > before else barren + 1
            else:
                await source.disconnect()  # E2B's envd blocks all readers of a process if one of them is stuck
            source = await self._attach(barren)
        if source is not self._process:
            await source.kill()

    async def _chunks(self, source: Process) -> AsyncIterator[bytes]:
        """Yield a stream's chunks; raise `StreamLostError` if it is silent although the journal has more events.

        Silence alone is no fault, as the runner writes nothing while a tool runs.
        """
        self._listener, behind = OutputReader(source), False
        while True:
            try:
                chunk = await self._listener.next()
            except TimeoutError:
                was_behind, behind = behind, await self._is_behind()
                if behind and was_behind:
                    raise StreamLostError("the stream is silent, but the runner's journal has more events") from None
                if behind:
                    self._listener.wait_at_most(GRACE_SECONDS)
                else:
                    self._listener.wait_longer()
            else:
                if chunk is None:
                    return
                behind = False
                yield chunk

    async def _is_behind(self) -> bool:
        """Return whether the journal has events that the stream has not delivered, or the runner has ended.

        Raise `SandboxGoneError`, and `StreamLostError` if the sandbox does not answer.
        """
        try:
            progress = await self._sandbox.progress(self._journal, self._process.id)
        except SandboxGoneError:
            raise
        except SandboxError as error:
            raise StreamLostError(str(error), error.error_type) from error
        return progress.last_seq > self._reader.last_seq or not progress.is_running

    async def _attach(self, barren: int) -> Process:
        """Start a process that reads the journal after the last event; try again while the sandbox cannot be reached.

        ``barren`` is the number of attempts in a row that have brought no event.
        """
        args = ("attach", "--after", str(self._reader.last_seq), "--journal", self._journal)
        while True:
            await _pause(barren)
            try:
                process = await self._sandbox.run(args, {})
            except SandboxError as error:
                if isinstance(error, SandboxGoneError) or error.error_type not in TEMPORARY:
                    raise
                barren += 1
            else:
                self._reader.begin_stream()
                return process

    def _hole(self, gap: Gap) -> Fault:
        """Give up the events that are missing from the journal too, and return a fault that reports them."""
        lost = f"events {self._reader.last_seq + 1} to {gap.seq - 1} were lost"
        self._reader.skip_to(gap.seq)
        return Fault(lost)

    async def _starts(self) -> bool:
        """Return whether a runner without a journal is still alive."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._process.wait()
        except TimeoutError:
            return True
        return False

    async def _died(self) -> RunnerDiedError:
        try:
            async with asyncio.timeout(self._patience):
                ended = await self._process.wait()
        except TimeoutError:
            await self._process.kill()
            ended = await self._process.wait()
        return died(ended)


def died(ended: Exit) -> RunnerDiedError:
    """Return the error for a runner that ended without an ``end`` event."""
    if ended.code in _NOT_STARTED:
        stderr = ended.stderr.strip()[-500:]
        message = f"the sandbox has no runner; its template must be one of Sandspan's (docs/TEMPLATE.md). {stderr}"
        return RunnerDiedError(message.strip(), "sandbox", _FAILED)
    failure = classify(oom_killed=ended.out_of_memory or None, process="runner")
    how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
    why = "the sandbox ran out of memory" if ended.out_of_memory else f"the runner {how}"
    message = f"{why} without an end event. {ended.stderr.strip()[-500:]}".strip()
    return RunnerDiedError(message, failure.error_type, ended.code)


async def _pause(barren: int) -> None:
    """Pause before the next attempt, longer after each that brought none; raise `StreamLostError` after too many."""
    if barren > MAX_ATTACHES:
        raise StreamLostError(f"{barren} attempts in a row to read the runner's events brought none")
    if barren:
        await asyncio.sleep(min(MAX_PAUSE_SECONDS, 0.02 * 2**barren))
