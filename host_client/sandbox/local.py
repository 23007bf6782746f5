"""A sandbox that is none: the runner as a child process, in a directory of its own.

It isolates nothing. The agent runs as the user who started it and can read and write what that user
can; only the environment is a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from agent_runner.contract.oom import oom_kills
from host_client.errors import (
    ConfigurationError,
    FileMissingError,
    FileRefusedError,
    FileTooLargeError,
    SandboxGoneError,
    SandboxStartError,
    StreamLostError,
)

from .base import LINE_HEAD_BYTES, Exit, Progress, SandboxInfo, inner_path, seq_in

_CHUNK = 256 * 1024
_STDERR_LINES = 50
_MARK = "SANDSPAN_SANDBOX"
"""In the environment of everything that runs in a sandbox: whose it is."""

AGENT_LOST = "the service that this session's agent ran in has ended, and the agent, which ran locally, with it"

_PREFIX = "sandspan-"
"""What the name of a directory begins with that is removed."""

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "HTTPS_PROXY")


class LocalSandbox:
    """Runs the runner on this machine.

    ``work`` is the agent's working directory and is used in place. ``keep`` is a directory for all else
    (the agent's home, its conversation, and its work where ``work`` is not given), which stays; a
    conversation can be resumed in it. Without it a new one is made, and removed by `close`.
    """

    def __init__(self, *, work: Path | None = None, keep: Path | None = None) -> None:
        if work is not None and not work.is_dir():
            raise ConfigurationError(f"the working directory {work} is not a directory")
        self._given = work.resolve() if work is not None else None
        self._keep = keep.resolve() if keep is not None else None
        self._root: Path | None = None
        self._temporary: Path | None = None
        self.name = ""
        self._processes: list[LocalProcess] = []

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Make the directories; nobody lists them, so ``metadata`` is not kept."""
        try:
            if self._keep is None:
                self._temporary = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._root = self._keep or self._temporary or Path()
            for name in ("home", "work"):
                (self._root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SandboxStartError(f"cannot make a directory for the run: {error}") from error
        self.work = self._given or self._root / "work"
        self.name = name = f"local-{secrets.token_hex(6)}"
        temporary = str(self._temporary) if self._temporary is not None else None
        journal = str(self._root / f"{name}.jsonl")
        return SandboxInfo(id=name, kind="local", work=str(self.work), journal=journal, root=temporary)

    async def adopt(self, info: SandboxInfo, process_id: str) -> Remnant:
        """End what is left of it: without its host the runner has lost its input. Its journal can be read."""
        root = Path(info.root) if info.root is not None else None
        if not info.id.startswith("local-") or (root is not None and not root.name.startswith(_PREFIX)):
            raise ConfigurationError(f"sandbox {info.id} in {root} is no local one")
        self.name, self.work = info.id, Path(info.work)
        self._root, self._temporary = Path(info.journal).parent, root
        await asyncio.to_thread(_kill_marked, self.name)
        if not await asyncio.to_thread(_is_left, Path(info.journal), self.work):
            raise SandboxGoneError(f"{AGENT_LOST}; its files are gone")
        return Remnant(process_id)

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        """Start the runner of this Python's environment."""
        assert self._root is not None, "create() comes first"
        home = {"HOME": str(self._root / "home"), "CLAUDE_CONFIG_DIR": str(self._root / "home" / ".claude")}
        own = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        oom_before = oom_kills()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "agent_runner",
                *args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**own, **home, **env, _MARK: self.name},
                cwd=self.work,
                # Ctrl-C in the terminal is the host's to handle.
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxStartError(f"cannot start the runner: {error}") from error
        started = LocalProcess(process, oom_before)
        self._processes.append(started)
        return started

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Read the end of the journal, and look for the process."""
        line = await asyncio.to_thread(_last_line, Path(journal))
        return Progress(seq_in(line), any(each.id == process_id and each.is_running for each in self._processes))

    async def upload(self, source: Path) -> None:
        """Copy into the working directory; symbolic links stay links."""
        if self._given is not None:
            raise ConfigurationError("--upload and --cwd exclude each other: --cwd uses a directory in place")
        await asyncio.to_thread(_copy, source, self.work)

    async def download(self, target: Path) -> None:
        """Copy out of the working directory."""
        await asyncio.to_thread(_copy, self.work, target)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Read from the working directory."""
        return await asyncio.to_thread(_read, self.work, path, max_bytes)

    async def leave(self) -> None:
        """Let go of it."""
        for process in self._processes:
            process.leave()
        self._root = self._temporary = None

    async def close(self) -> None:
        """Kill what still runs and remove the directories."""
        for process in self._processes:
            await process.kill()
        await asyncio.to_thread(_kill_marked, self.name)
        temporary, self._temporary, self._root = self._temporary, None, None
        if temporary is not None:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)


def _kill_marked(name: str) -> None:
    """Kill what a killed runner left: its CLI gives every tool a session of its own, but all have our mark."""
    mark = f"{_MARK}={name}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _is_left(journal: Path, work: Path) -> bool:
    return journal.is_file() and work.is_dir()


def _last_line(journal: Path) -> bytes:
    """Return the beginning of a file's last line; nothing if the file is empty or missing."""
    size, lines = _CHUNK, [b""]
    with contextlib.suppress(OSError), journal.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        while len(lines) == 1 and size < 2 * length + _CHUNK:
            file.seek(max(0, length - size))
            lines = file.read().removesuffix(b"\n").split(b"\n")
            size *= 2
    return lines[-1][:LINE_HEAD_BYTES]


def _copy(source: Path, target: Path) -> None:
    try:
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    except OSError as error:
        raise ConfigurationError(f"cannot copy {source} to {target}: {error}") from error


def _read(work: Path, path: str, max_bytes: int) -> bytes:
    """Read a file; nothing is isolated here, so a link that changes meanwhile gives nobody anything new."""
    try:
        found = (work / inner_path(path)).resolve(strict=True)
        if not found.is_relative_to(work.resolve()):
            raise FileRefusedError(f"{path!r} leads out of the working directory")
        if not found.is_file():
            raise FileRefusedError(f"{path!r} is no regular file")
        with found.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissingError(f"the working directory has no file {path!r}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise FileRefusedError(f"{path!r} cannot be read: {error}") from error
    if len(content) > max_bytes:
        raise FileTooLargeError(f"{path!r} is larger than {max_bytes} bytes")
    return content


class LocalProcess:
    """A child process."""

    def __init__(self, process: asyncio.subprocess.Process, oom_before: int) -> None:
        self._process = process
        self._oom_before = oom_before
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_LINES)
        self._draining = asyncio.ensure_future(self._drain_stderr())
        self.pid = process.pid

    @property
    def id(self) -> str:
        """The process's number."""
        return str(self.pid)

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._stderr.append(chunk)

    async def output(self) -> AsyncIterator[bytes]:
        """Yield stdout; a pipe of a living process is never lost."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(_CHUNK):
            yield chunk

    async def disconnect(self) -> None:
        """Do nothing: the runner needs no reader of its stdout."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def write(self, data: bytes) -> None:
        """Write to stdin."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: the transport is closed
            raise StreamLostError("the runner takes no more commands") from error

    async def close_input(self) -> None:
        """Close stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def wait(self) -> Exit:
        """Wait for the end."""
        code = await self._process.wait()
        await self._draining
        stderr = b"".join(self._stderr).decode("utf-8", "replace")
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return Exit(code, killed and oom_kills() > self._oom_before, stderr)

    async def terminate(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def kill(self) -> None:
        """Kill the whole process group: the runner, its CLI and their tools."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._draining.cancel()

    def leave(self) -> None:
        """Hear no more of it."""
        self._draining.cancel()


class Remnant:
    """A runner that has been ended, as its host had."""

    def __init__(self, process_id: str) -> None:
        self.id = process_id

    async def output(self) -> AsyncIterator[bytes]:
        """Yield nothing: the journal has it all."""
        return
        yield b""

    async def disconnect(self) -> None:
        """Do nothing."""

    async def write(self, data: bytes) -> None:
        """Raise `StreamLostError`."""
        raise StreamLostError(AGENT_LOST)

    async def close_input(self) -> None:
        """Nothing to do."""

    async def wait(self) -> Exit:
        """Raise `SandboxGoneError`: how it ended nobody knows."""
        raise SandboxGoneError(AGENT_LOST)

    async def terminate(self) -> None:
        """Nothing to do."""

    async def kill(self) -> None:
        """Nothing to do."""
