"""A process in an E2B sandbox: its output as a stream, its input, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import signal
from collections import deque
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING

from e2b import CommandExitException, NotFoundException

from host_client.errors import SandboxError, SandboxGoneError, StreamLostError
from host_client.sandbox.base import LINE_HEAD_BYTES, Exit, Progress, seq_in

from ._failures import Translated, failure_of

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle, AsyncSandbox

MAX_CHUNKS = 256
"""Chunks that wait for a slow reader; more stay in the sandbox, whose runner keeps them in its journal."""

_STDERR_CHUNKS = 50
LOOK_SECONDS = 10.0
"""How long the command of `progress` may take, whose own stream can be silent, too."""

_COUNT_OOM_KILLS = "/bin/grep '^oom_kill ' /proc/vmstat"
"""How often the sandbox, a machine of its own, has killed for want of memory. What root runs is named by its path."""

# /proc/PID of a process that has ended stays until envd asks for its exit code, but without `exe`.
_PROGRESS = f"""[ -e /proc/%s/exe ] && echo running || echo ended
/usr/bin/tail -n 1 -- %s 2>/dev/null | /usr/bin/head -c {LINE_HEAD_BYTES}
"""

_logger = logging.getLogger(__name__)


async def progress(sandbox: AsyncSandbox, journal: str, process_id: str) -> Progress:
    """Return how far a runner has come, by a command of its own: streams of other processes go on when one is stuck."""
    command = _PROGRESS % (shlex.quote(process_id), shlex.quote(journal))
    with Translated():
        # The SDK leaves it to envd to end a stream whose time is up.
        async with asyncio.timeout(LOOK_SECONDS):
            said = await sandbox.commands.run(command, user="root", timeout=LOOK_SECONDS)
    lines = said.stdout.rstrip("\n").split("\n")[-2:]
    return Progress(seq_in(lines[-1].encode()), "running" in lines)


class E2BProcess:
    """One process; made by `start`, or by `adopt` for one that runs."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue(MAX_CHUNKS)
        self._stderr: deque[str] = deque(maxlen=_STDERR_CHUNKS)
        self._counted = ""
        self._following: asyncio.Task[None] | None = None
        self._exit: int | None = None
        self._lost: SandboxError | None = None
        self.pid = 0

    @classmethod
    async def start(cls, sandbox: AsyncSandbox, command: str, env: dict[str, str]) -> E2BProcess:
        """Start a command line as root, in a shell that it takes the place of; raise `SandboxError`."""
        this = cls(sandbox)
        with Translated():
            handle = await sandbox.commands.run(
                # The count before, which costs no request of its own.
                f"{_COUNT_OOM_KILLS} >&2; exec {command}",
                background=True,
                envs=env,
                user="root",
                cwd="/",
                on_stdout=this._chunks.put,
                on_stderr=this._hear,
                stdin=True,
                timeout=0,
                retain_output=False,
            )
        this.pid = handle.pid
        this._following = asyncio.create_task(this._follow(handle))
        return this

    @classmethod
    async def adopt(cls, sandbox: AsyncSandbox, process_id: str) -> E2BProcess:
        """Return a running process, whose output is not followed; raise `SandboxError`."""
        this = cls(sandbox)
        this.pid = int(process_id)
        this._chunks.put_nowait(None)
        with Translated():
            # From now on: what was killed before may have been a tool of a runner that lives.
            this._counted = (await sandbox.commands.run(_COUNT_OOM_KILLS, user="root")).stdout
        return this

    @property
    def id(self) -> str:
        """Its number in the sandbox."""
        return str(self.pid)

    async def _follow(self, handle: AsyncCommandHandle[None]) -> None:
        """Take the stream to its end, whatever that is."""
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `lose` or `disconnect`
                try:
                    self._exit = await _exit_code(handle)
                except Exception as error:  # the SDK's, the HTTP libraries', or a bare one: there is no end event
                    self._lost = _lost(error)
            await self._chunks.put(None)
        finally:
            await handle.disconnect()

    def _hear(self, chunk: str) -> None:
        """Take stderr; its first line is ours."""
        if "\n" not in self._counted:
            self._counted += chunk
            _, _, chunk = self._counted.partition("\n")
        if chunk:
            self._stderr.append(chunk)

    @property
    def followed(self) -> bool:
        """Whether its stream is still being read."""
        return self._following is not None and not self._following.done()

    async def output(self) -> AsyncIterator[bytes]:
        """Yield stdout; raise `StreamLostError` for a stream that was cut, `SandboxGoneError` if the sandbox ended."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk.encode()
        self._chunks.put_nowait(None)  # whoever asks again is told again
        if self._lost is not None:
            raise self._lost

    def lose(self, error: SandboxError) -> None:
        """End the output with this error, after the chunks that have come."""
        if self._following is not None and not self._following.done():
            self._lost = error
            self._following.cancel()

    async def write(self, data: bytes) -> None:
        """Write to stdin; raise `StreamLostError` when nothing takes it."""
        with _unheard():
            await self._sandbox.commands.send_stdin(self.pid, data)

    async def close_input(self) -> None:
        """Close stdin."""
        with _unheard():
            await self._sandbox.commands.close_stdin(self.pid)

    async def wait(self) -> Exit:
        """Wait for the end, over a new connection where the first was lost; raise `SandboxGoneError`."""
        if self._following is not None:
            await asyncio.wait((self._following,))
        if self._exit is None:
            self._exit = await self._exit_from_afar()
        killed = self._exit == -signal.SIGKILL
        return Exit(self._exit, killed and await self._ran_out_of_memory(), "".join(self._stderr))

    async def _exit_from_afar(self) -> int:
        """Ask for the exit code again: envd keeps it for 30 seconds."""
        with Translated():
            try:
                handle = await self._sandbox.commands.connect(self.pid, timeout=0, retain_output=False)
                return await _exit_code(handle)
            except NotFoundException:
                return -signal.SIGKILL  # long gone, and its runner left no `end`: nothing else is known of it

    async def _ran_out_of_memory(self) -> bool:
        """Whether the sandbox killed something for want of memory while the process ran."""
        try:
            counted = await self._sandbox.commands.run(_COUNT_OOM_KILLS, user="root")
        except Exception as error:  # a detail of a failure that is told anyway
            _logger.warning("cannot tell whether sandbox %s ran out of memory: %s", self._sandbox.sandbox_id, error)
            return False
        return _count_in(counted.stdout) > _count_in(self._counted)

    async def terminate(self) -> None:
        """Send SIGTERM; the SDK itself only has SIGKILL."""
        with _unheard(), contextlib.suppress(CommandExitException):  # it has ended
            await self._sandbox.commands.run(f"kill -TERM {self.pid}", user="root")

    async def kill(self) -> None:
        """Send SIGKILL and let go of the stream. What the process started ends with the sandbox."""
        with contextlib.suppress(StreamLostError, SandboxGoneError), _unheard():
            await self._sandbox.commands.kill(self.pid)
        await self.disconnect()

    async def disconnect(self) -> None:
        """Let go of the stream and of the chunks that have come; the process goes on."""
        if self._following is not None and not self._following.done():
            self._following.cancel()
            self._drop_chunks()
            await asyncio.wait((self._following,))
            self._drop_chunks()
            self._chunks.put_nowait(None)

    def _drop_chunks(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()


def _lost(error: Exception) -> SandboxError:
    """Return why a stream ended: whatever it was, the process may live on, unless its sandbox is gone."""
    failure = failure_of(error)
    return failure if isinstance(failure, SandboxGoneError) else StreamLostError(str(failure), failure.error_type)


def _count_in(line: str) -> int:
    found = re.match(r"oom_kill (\d+)\n", line)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def _unheard() -> Generator[None]:
    """Raise `StreamLostError` for whatever keeps a command from the process."""
    try:
        with Translated():
            yield
    except StreamLostError:
        raise
    except SandboxError as error:
        raise StreamLostError(str(error), error.error_type) from error


async def _exit_code(handle: AsyncCommandHandle[None]) -> int:
    try:
        await handle.wait()
    except CommandExitException as ended:
        return _signal_in(ended.error) or ended.exit_code
    return 0


def _signal_in(error: str | None) -> int | None:
    """Return minus the signal that envd names: ``signal: killed`` with exit code -1."""
    named = (error or "").removeprefix("signal: ")
    return _SIGNALS.get(named)


# As Go's syscall package, which envd uses, calls them.
_SIGNALS = {
    "hangup": -signal.SIGHUP,
    "interrupt": -signal.SIGINT,
    "aborted": -signal.SIGABRT,
    "killed": -signal.SIGKILL,
    "segmentation fault": -signal.SIGSEGV,
    "terminated": -signal.SIGTERM,
}
