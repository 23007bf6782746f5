"""Reads the output of one process with a limit on silence."""

from __future__ import annotations

import asyncio

from host_client.sandbox import Process

SILENCE_SECONDS = 20.0
"""Seconds without output after which the stream is compared with the runner's journal.

A stream of E2B can stay open and silent for 15 minutes while all else works, and also when its sandbox is gone
(e2b-dev/infra issue 3292, e2b-dev/E2B issues 1352 and 1587).
"""

FIRST_WORD_SECONDS = 20.0
"""The same limit for a process that has written nothing yet: it may still be starting."""

ANSWER_SECONDS = 1.0
"""The limit after a command, which the runner answers at once as a rule; it doubles with each look at the journal."""


class OutputReader:
    """Reads one process; `next` raises `TimeoutError` when the process writes nothing for too long."""

    def __init__(self, source: Process) -> None:
        self._source = source
        self._output = source.output()
        self._limit = FIRST_WORD_SECONDS
        self._waiting: asyncio.Timeout | None = None
        self._has_spoken = False

    async def next(self) -> bytes | None:
        """Return the next chunk, or None at the end; a call after a `TimeoutError` goes on without a loss."""
        try:
            async with asyncio.timeout(self._limit) as self._waiting:
                chunk = await anext(self._output, None)
        except TimeoutError:
            self._output = self._source.output()  # the iterator before was cancelled, which ended it
            raise
        finally:
            self._waiting = None
        self._limit, self._has_spoken = SILENCE_SECONDS, True
        return chunk

    def wait_longer(self) -> None:
        """Double the limit, up to `SILENCE_SECONDS`."""
        self._limit = min(2 * self._limit, SILENCE_SECONDS)

    def wait_at_most(self, seconds: float) -> None:
        """Lower the limit, also for the wait that is under way."""
        self._limit = min(self._limit, seconds)
        until = asyncio.get_running_loop().time() + seconds
        if self._waiting is not None and not self._waiting.expired() and until < (self._waiting.when() or until):
            self._waiting.reschedule(until)

    def expect(self) -> None:
        """Lower the limit because an answer is due; not for a process that may still be starting."""
        if self._has_spoken:
            self.wait_at_most(ANSWER_SECONDS)
