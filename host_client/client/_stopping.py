"""Ends a runner in steps, each with a limit of time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from agent_runner.contract.protocol import Stop, encode
from host_client.errors import SandboxError
from host_client.sandbox import Process


class RunnerStopper:
    """Ends a runner that sets ``ended``; it has ``timeout`` seconds for each step. `hurry` cuts these waits short."""

    def __init__(self, ended: asyncio.Event, timeout: float) -> None:
        self._ended = ended
        self._timeout = timeout
        self._hurried = asyncio.Event()
        self._unanswered: set[asyncio.Future[None]] = set()

    def hurry(self) -> None:
        """Cut the waits short, also those of a later `stop`."""
        self._hurried.set()

    async def stop(self, process: Process, expect: Callable[[], None]) -> bool:
        """Tell a runner to stop, close its input, terminate it and kill it, until it has ended.

        ``expect`` is called after each request, as the runner's last events should follow. Return False if the runner
        had to be killed.
        """
        if not self._ended.is_set():
            await self._ask(process.write(encode(Stop())))
        for request in (process.close_input, process.terminate):
            await self._ask(request())
            expect()
            await self._wait_for_end()
            if self._ended.is_set():
                return True
        with contextlib.suppress(SandboxError, TimeoutError):  # closing the sandbox ends the runner too
            async with asyncio.timeout(self._timeout):
                await process.kill()
        await self._wait_for_end()
        return False

    async def _ask(self, request: Awaitable[None]) -> None:
        """Send a request to the runner; a runner that cannot be reached is no error."""
        asked = await self._until_hurried(request)
        if asked.done():
            with contextlib.suppress(SandboxError):
                asked.result()
        else:
            # Not cancelled, as the E2B SDK does not handle that well; the request ends with the sandbox.
            self._unanswered.add(asked)
            asked.add_done_callback(_retrieve)

    async def _wait_for_end(self) -> None:
        (await self._until_hurried(self._ended.wait())).cancel()

    async def _until_hurried(self, awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        """Wait until the awaitable is done, the stop timeout is over or `hurry` is called; return its future."""
        future, hurried = asyncio.ensure_future(awaitable), asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((future, hurried), timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        return future


def _retrieve(asked: asyncio.Future[None]) -> None:
    """Retrieve the exception of a request that is no longer awaited; asyncio would log it otherwise."""
    if not asked.cancelled():
        asked.exception()
