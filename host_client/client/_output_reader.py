"""Reads the output of one process and notices when it is silent for too long."""

from __future__ import annotations

import asyncio
import math

from host_client.sandbox import Process

SILENCE_SECONDS = 20.0
"""Seconds without output after which the stream is compared with the runner's journal.

A stream of E2B can stay open and silent for 15 minutes although the sandbox works, or after the sandbox has ended
(e2b-dev/infra issue 3292, e2b-dev/E2B issues 1352 and 1587).
"""

START_SECONDS = 20.0
"""Seconds of silence allowed to a process that has written nothing yet, as it may still be starting."""

ANSWER_SECONDS = 1.0
"""Seconds of silence allowed after a command, which the runner usually answers at once; doubled by each check."""


class OutputReader:
    """Reads the output of one process; `next` raises `TimeoutError` when it is silent for too long."""

    def __init__(self, source: Process) -> None:
        self._source = source
        self._output = source.output()
        self._limit = START_SECONDS
        self._has_written = False
        self._waiting: asyncio.Timeout | None = None
        self._deadline = math.inf
        """The loop's time at which the wait in progress ends."""
        self._timer: asyncio.TimerHandle | None = None

    async def next(self) -> bytes | None:
        """Return the next chunk, or None at the end; a call after a `TimeoutError` continues without loss."""
        self._set_deadline(asyncio.get_running_loop().time() + self._limit)
        try:
            async with asyncio.timeout(None) as self._waiting:
                chunk = await anext(self._output, None)
        except TimeoutError:
            self._output = self._source.output()  # cancelling the wait ended the iterator
            raise
        finally:
            self._waiting = None
        self._limit, self._has_written = SILENCE_SECONDS, True
        return chunk

    def wait_longer(self) -> None:
        """Double the allowed silence, up to `SILENCE_SECONDS`."""
        self._limit = min(2 * self._limit, SILENCE_SECONDS)

    def wait_at_most(self, seconds: float) -> None:
        """Lower the allowed silence, also for a wait in progress."""
        self._limit = min(self._limit, seconds)
        self._set_deadline(min(self._deadline, asyncio.get_running_loop().time() + seconds))

    def expect(self) -> None:
        """Lower the allowed silence because an answer is due, unless the process may still be starting."""
        if self._has_written:
            self.wait_at_most(ANSWER_SECONDS)

    # One timer for all chunks that come in time: a timer for each costs as much as reading it.

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is None or deadline < self._timer.when():
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        """End the wait in progress at its deadline; a chunk that came meanwhile has moved the deadline."""
        self._timer = None
        if self._waiting is None:
            return
        if self._deadline > asyncio.get_running_loop().time():
            self._set_timer()
        elif not self._waiting.expired():
            self._waiting.reschedule(self._deadline)
