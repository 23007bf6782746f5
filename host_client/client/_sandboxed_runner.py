"""The runner of a session in its sandbox: created or taken over, followed, and ended or left to another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent_runner.contract.protocol import AnyEvent, ErrorType, Stop, encode
from agent_runner.contract.trace_context import TraceContext
from host_client.errors import SandboxError, SessionClosedError
from host_client.sandbox import Process, Sandbox, SandboxInfo
from host_client.telemetry import SessionTrace

from ._commander import Commander
from ._host_errors import host_error
from ._outcome import SessionFailure, SessionOutcome
from ._session_stream import Replay, SessionStream
from ._stream import RunnerStream
from .mailbox import Outlet

_logger = logging.getLogger(__name__)


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """All that another process needs to take a session over (`take_over`), as JSON too.

    ``own_spans`` are the spans that the host itself has ended, as an OTLP request: it may die before it delivers them.
    """

    run_id: str
    info: SandboxInfo
    process_id: str
    trace_ids: tuple[str, ...]
    own_spans: bytes = b""


class SandboxedRunner:
    """A sandbox and the runner in it.

    ``ended`` is set when the runner has ended. A runner that is told to stop has ``stop_timeout`` seconds, and as many
    again after it was terminated; then it is killed. `hurry` cuts these waits short.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        trace: SessionTrace,
        outcome: SessionOutcome,
        commander: Commander,
        stream: SessionStream,
        outlet: Outlet[AnyEvent],
        ended: asyncio.Event,
        stop_timeout: float,
    ) -> None:
        self.run_id = str(uuid.uuid4())
        self.info: SandboxInfo | None = None
        self.left_behind: str | None = None
        self._sandbox = sandbox
        self._trace = trace
        self._outcome = outcome
        self._commander = commander
        self._stream = stream
        self._outlet = outlet
        self._ended = ended
        self._stop_timeout = stop_timeout
        self._process: Process | None = None
        self._source: RunnerStream | None = None
        self._closing: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._unanswered: set[asyncio.Future[None]] = set()

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Return what another process needs to take over; None before the runner runs."""
        if self.info is None or self._process is None:
            return None
        return Whereabouts(
            run_id=self.run_id,
            info=self.info,
            process_id=self._process.id,
            trace_ids=self._trace.trace_ids,
            own_spans=self._trace.own,
        )

    async def start(
        self,
        metadata: Mapping[str, str],
        environment: Callable[[SandboxInfo], Mapping[str, str]],
        upload: Path | None,
    ) -> None:
        """Create the sandbox, under a span of its own, and start the runner in it."""
        with self._trace.span("sandbox.create") as span:
            began = time.monotonic()
            info = self.info = await self._sandbox.create({**metadata, "sandspan.run_id": self.run_id})
            milliseconds = round((time.monotonic() - began) * 1000, 3)
            span.attributes.update({"sandbox.id": info.id, "sandbox.kind": info.kind})
            span.attributes.update({"sandbox.creation_duration_ms": milliseconds, **info.attributes})
        with self._trace.current():
            if upload is not None:
                await self._sandbox.upload(upload)
            self._follow(await self._sandbox.run(("run",), environment(info)), info, Replay())

    async def adopt(self, whereabouts: Whereabouts, replay: Replay, patience: float) -> None:
        """Find the sandbox and runner of a dead host, and take in the replay; see `SessionStream.caught_up`."""
        self.run_id = whereabouts.run_id
        for trace_id in whereabouts.trace_ids:
            self._trace.admit(TraceContext(trace_id, ""))
        self._trace.replay_own(whereabouts.own_spans)
        with self._trace.current():
            process = await self._sandbox.adopt(whereabouts.info, whereabouts.process_id)
            self.info = whereabouts.info
            self._follow(process, whereabouts.info, replay)
            await self._stream.caught_up(patience)

    def _follow(self, process: Process, info: SandboxInfo, replay: Replay) -> None:
        self._process = process
        self._source = RunnerStream(self._sandbox, process, info.journal, self._stop_timeout)
        self._commander.connect(process, self._source.expect)
        self._stream.follow(self._source, replay)

    # -- the end ----------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Note why the session ends early."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
            self._outcome.fail("cancelled", "the session was cancelled")
            return
        error_type: ErrorType = getattr(error, "error_type", "internal")
        if self._outcome.failure is None and isinstance(error, SandboxError):  # the stream has not told of it
            host_error(self._trace, error_type, str(error))
        self._outcome.fail(error_type, str(error))

    def hurry(self) -> None:
        """Kill the runner without waiting for it to stop. The sandbox is still removed."""
        self._hurried.set()

    async def close(self) -> None:
        """End the runner, the sandbox and the trace, to the end also when the caller is cancelled."""
        closing, cancelled = self._begin_closing(self._close), False
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
                self.hurry()
        closing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def abandon(self) -> None:
        """Leave the runner and the sandbox to another process, and read no more."""
        await asyncio.shield(self._begin_closing(self._abandon))

    def _begin_closing(self, how: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Return the task that closes the session, which the first call starts."""
        if self._closing is None:
            self._commander.close()
            self._outlet.close()
            self._closing = asyncio.ensure_future(how())
        return self._closing

    async def _close(self) -> None:
        try:
            with self._trace.span("sandbox.cleanup"):
                if self._process is not None:
                    await self._stop(self._process)
                await self._sandbox.close()
        except SandboxError as error:  # the run is over, and its result is worth more than the sandbox that is left
            self.left_behind = str(error)
            _logger.warning("sandbox %s may be left behind: %s", self.info.id if self.info else "", error)
        finally:
            self._commander.cancel()
            why = self._outcome.failure or SessionFailure("sandbox", "the runner never sent this span")
            self._trace.end_orphans(why.error_type, why.message)
            error = self._outcome.error_of_trace
            self._trace.close(error.error_type if error else None, error.message if error else "")

    async def _abandon(self) -> None:
        self._commander.cancel()
        await self._stream.cancel()
        await self._sandbox.leave()
        self._trace.leave()
        self._outlet.forget()

    async def _stop(self, process: Process) -> None:
        if not self._ended.is_set():
            await self._ask(process.write(encode(Stop())))
        for ask in (process.close_input, process.terminate):
            await self._ask(ask())
            if self._source is not None:
                self._source.expect()
            await self._wait_for_end()
            if self._ended.is_set():
                return
        with contextlib.suppress(SandboxError):
            async with asyncio.timeout(self._stop_timeout):
                await process.kill()
        await self._wait_for_end()
        await self._stream.cancel()

    async def _ask(self, request: Awaitable[None]) -> None:
        """Ask the runner for something; a runner that cannot be reached is no error."""
        asked = await self._until_hurried(request)
        if asked.done():
            with contextlib.suppress(SandboxError):
                asked.result()
        else:
            # Not cancelled, which the E2B SDK does not take well; it ends with the sandbox.
            self._unanswered.add(asked)
            asked.add_done_callback(_retrieve)

    async def _wait_for_end(self) -> None:
        (await self._until_hurried(self._ended.wait())).cancel()

    async def _until_hurried(self, awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        """Wait for the stop timeout or until hurried; return the awaitable's future, done or not."""
        future, hurried = asyncio.ensure_future(awaitable), asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((future, hurried), timeout=self._stop_timeout, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        return future

    # -- files ------------------------------------------------------------------------------------

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the agent's working directory; see `Session.read_file`."""
        if self.info is None or self._closing is not None:
            raise SessionClosedError("the session has ended, and its files with it")
        with self._trace.current():
            return await self._sandbox.read_file(path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy the agent's working directory to a folder."""
        with self._trace.current():
            await self._sandbox.download(target)


def _retrieve(asked: asyncio.Future[None]) -> None:
    """Retrieve the exception of a request that nobody waits for, which asyncio would log otherwise."""
    if not asked.cancelled():
        asked.exception()
