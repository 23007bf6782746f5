"""Controls one process in an E2B sandbox: its output, its input and its end."""

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
"""Maximum number of chunks that wait for a slow reader; the runner's journal holds what follows."""

_STDERR_CHUNKS = 50
LOOK_SECONDS = 10.0
"""Seconds that the command of `progress` may take, as its own stream can be silent too."""

_WRITE_SECONDS = 60.0
_SLOWEST_UPLINK = 64 * 1024
"""Bytes a second of a slow connection, which a prompt with attachments of 10 MiB keeps busy for minutes."""

_COUNT_OOM_KILLS = "/bin/grep '^oom_kill ' /proc/vmstat"
"""Shell command that prints how many processes the sandbox's kernel has killed because memory ran out."""

# /proc/PID of an ended process stays until envd reads its exit code, but its `exe` does not. Paths, not names, as root
# must not run a program that the agent has put on the PATH.
_PROGRESS = f"""[ -e /proc/%s/exe ] && echo running || echo ended
/usr/bin/tail -n 1 -- %s 2>/dev/null | /usr/bin/head -c {LINE_HEAD_BYTES}
"""

_logger = logging.getLogger(__name__)


async def progress(sandbox: AsyncSandbox, journal: str, process_id: str) -> Progress:
    """Return the progress of a runner, read by a separate command, which works also if the runner's stream is stuck."""
    command = _PROGRESS % (shlex.quote(process_id), shlex.quote(journal))
    with Translated():
        # The timeout of the SDK relies on envd, which may be stuck.
        async with asyncio.timeout(LOOK_SECONDS):
            done = await sandbox.commands.run(command, user="root", timeout=LOOK_SECONDS)
    lines = done.stdout.rstrip("\n").split("\n")[-2:]
    return Progress(seq_in(lines[-1].encode()), "running" in lines)


class E2BProcess:
    """One process in an E2B sandbox; `start` starts one, `adopt` takes one that runs."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue(MAX_CHUNKS)
        self._stderr: deque[str] = deque(maxlen=_STDERR_CHUNKS)
        self._kills_before = ""
        self._following: asyncio.Task[None] | None = None
        self._exit: int | None = None
        self._lost: SandboxError | None = None
        self.pid = 0

    @classmethod
    async def start(cls, sandbox: AsyncSandbox, command: str, env: dict[str, str]) -> E2BProcess:
        """Start a command line as root; raise `SandboxError`."""
        this = cls(sandbox)
        with Translated():
            handle = await sandbox.commands.run(
                # Counts the kills before the start, without a further request; `_take_stderr` reads that line.
                f"{_COUNT_OOM_KILLS} >&2; exec {command}",
                background=True,
                envs=env,
                user="root",
                cwd="/",
                on_stdout=this._chunks.put,
                on_stderr=this._take_stderr,
                stdin=True,
                timeout=0,
                retain_output=False,
            )
        this.pid = handle.pid
        this._following = asyncio.create_task(this._follow(handle))
        return this

    @classmethod
    async def adopt(cls, sandbox: AsyncSandbox, process_id: str) -> E2BProcess:
        """Return a running process, whose output is not read; raise `SandboxError`."""
        this = cls(sandbox)
        this.pid = int(process_id)
        this._chunks.put_nowait(None)
        with Translated():
            # Only later kills count: an earlier one may have been a tool, and the runner lived on.
            this._kills_before = (await sandbox.commands.run(_COUNT_OOM_KILLS, user="root")).stdout
        return this

    @property
    def id(self) -> str:
        """Return the process id in the sandbox."""
        return str(self.pid)

    async def _follow(self, handle: AsyncCommandHandle[None]) -> None:
        """Read the stream to its end, and note the exit code or the error that ended it."""
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `lose` or `disconnect`
                try:
                    self._exit = await _exit_code(handle)
                except Exception as error:  # of the SDK, the HTTP libraries or a bare one: the stream broke
                    self._lost = _lost(error)
            await self._chunks.put(None)
        finally:
            await handle.disconnect()

    def _take_stderr(self, chunk: str) -> None:
        """Keep a chunk of stderr, except its first line, which is the output of `_COUNT_OOM_KILLS`."""
        if "\n" not in self._kills_before:
            self._kills_before += chunk
            _, _, chunk = self._kills_before.partition("\n")
        if chunk:
            self._stderr.append(chunk)

    @property
    def is_followed(self) -> bool:
        """Return whether the stream is still being read."""
        return self._following is not None and not self._following.done()

    async def output(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks; raise `StreamLostError` if the stream broke, `SandboxGoneError` without a sandbox."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk.encode()
        self._chunks.put_nowait(None)  # so that a further reader ends too
        if self._lost is not None:
            raise self._lost

    def lose(self, error: SandboxError) -> None:
        """End the output with this error, after the chunks that have been received."""
        if self._following is not None and not self._following.done():
            self._lost = error
            self._following.cancel()

    async def write(self, data: bytes) -> None:
        """Write to stdin; raise `StreamLostError` if the data cannot be delivered."""
        with _undelivered():
            seconds = _WRITE_SECONDS + len(data) / _SLOWEST_UPLINK
            await self._sandbox.commands.send_stdin(self.pid, data, request_timeout=seconds)

    async def close_input(self) -> None:
        """Close stdin."""
        with _undelivered():
            await self._sandbox.commands.close_stdin(self.pid)

    async def wait(self) -> Exit:
        """Wait for the process to end, over a new connection if the first was lost; raise `SandboxGoneError`."""
        if self._following is not None:
            await asyncio.wait((self._following,))
        if self._exit is None:
            self._exit = await self._exit_code_again()
        killed = self._exit == -signal.SIGKILL
        return Exit(self._exit, killed and await self._ran_out_of_memory(), "".join(self._stderr))

    async def _exit_code_again(self) -> int:
        """Return the exit code over a new connection; envd keeps it for 30 seconds."""
        with Translated():
            try:
                handle = await self._sandbox.commands.connect(self.pid, timeout=0, retain_output=False)
                return await _exit_code(handle)
            except NotFoundException:
                return -signal.SIGKILL  # ended long ago without an `end` event, so most likely killed

    async def _ran_out_of_memory(self) -> bool:
        """Return whether the sandbox's kernel killed a process because memory ran out, while this one ran."""
        try:
            counted = await self._sandbox.commands.run(_COUNT_OOM_KILLS, user="root")
        except Exception as error:  # only a detail of a failure that is reported anyway
            _logger.warning("cannot tell whether sandbox %s ran out of memory: %s", self._sandbox.sandbox_id, error)
            return False
        return _count_in(counted.stdout) > _count_in(self._kills_before)

    async def terminate(self) -> None:
        """Send SIGTERM by a command, as the SDK can only send SIGKILL."""
        with _undelivered(), contextlib.suppress(CommandExitException):  # the process has ended
            await self._sandbox.commands.run(f"kill -TERM {self.pid}", user="root")

    async def kill(self) -> None:
        """Send SIGKILL and stop reading; the runner's guardian ends the other processes."""
        with contextlib.suppress(StreamLostError, SandboxGoneError), _undelivered():
            await self._sandbox.commands.kill(self.pid)
        await self.disconnect()

    async def disconnect(self) -> None:
        """Stop reading, and drop the chunks that have been received; the process continues."""
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
    """Return the error of a broken stream: `SandboxGoneError` if the sandbox ended, else `StreamLostError`."""
    failure = failure_of(error)
    return failure if isinstance(failure, SandboxGoneError) else StreamLostError(str(failure), failure.error_type)


def _count_in(line: str) -> int:
    found = re.match(r"oom_kill (\d+)\n", line)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def _undelivered() -> Generator[None]:
    """Raise `StreamLostError` for any error of the SDK in the block."""
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
    """Return the signal in envd's error text, such as ``signal: killed``, as a negative exit code; None without one."""
    named = (error or "").removeprefix("signal: ")
    return _SIGNALS.get(named)


# Names of Go's syscall package, which envd uses.
_SIGNALS = {
    "hangup": -signal.SIGHUP,
    "interrupt": -signal.SIGINT,
    "aborted": -signal.SIGABRT,
    "killed": -signal.SIGKILL,
    "segmentation fault": -signal.SIGSEGV,
    "terminated": -signal.SIGTERM,
}
