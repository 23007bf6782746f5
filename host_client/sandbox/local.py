"""A local sandbox: the runner as a child process, in a directory of its own.

It isolates nothing. The agent runs as the user who started it, and can read and write all that this user can; only the
environment variables are not inherited.
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
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from agent_runner.contract.oom import oom_kills
from host_client.errors import (
    ConfigurationError,
    FileMissingError,
    FileRefusedError,
    FileTooLargeError,
    SandboxError,
    SandboxGoneError,
    SandboxStartError,
    StreamLostError,
)

from .base import LINE_HEAD_BYTES, Exit, Progress, SandboxInfo, inner_path, seq_in

_CHUNK = 256 * 1024
_STDERR_LINES = 50
_MARK = "SANDSPAN_SANDBOX"
"""Environment variable that every process of a sandbox has; its value is the sandbox's name."""

_END_SECONDS = 4.0
"""Seconds to wait for a killed runner's guardian to end the other processes; it takes at most 3."""

AGENT_LOST = "the agent ran locally, in a service that has ended, and the agent ended with it"

_PREFIX = "sandspan-"
"""Prefix of the directories that this module creates; only those are ever removed."""

_PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("CLAUDE_CODE_CLIENT_CERT", "CLAUDE_CODE_CLIENT_KEY", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE"),
)


class LocalSandbox:
    """Runs the runner on this machine.

    ``work`` is an existing directory for the agent to work in. ``keep`` is a directory for everything else (the agent's
    home and conversation, and its work if ``work`` is not given), which is not removed, so that the conversation can be
    resumed. Without ``keep``, a temporary directory is made, and removed by `close`.
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

    def work_in(self, folder: Path) -> bool:
        """Let the agent work in the folder itself."""
        if self._given not in (None, folder):
            raise ConfigurationError(f"LocalSandbox(work={self._given}) and cwd {folder} exclude each other: give one")
        self._given = folder
        return True

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Create the directories. Local sandboxes cannot be listed, so ``metadata`` is not kept."""
        try:
            if self._keep is None:
                self._temporary = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._root = self._keep or self._temporary or Path()
            for name in ("home", "tmp", "work"):
                (self._root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SandboxStartError(f"cannot make a directory for the run: {error}") from error
        self.work = self._given or self._root / "work"
        self.name = name = f"local-{secrets.token_hex(6)}"
        temporary = str(self._temporary) if self._temporary is not None else None
        journal = str(self._root / f"{name}.jsonl")
        return SandboxInfo(id=name, kind="local", work=str(self.work), journal=journal, root=temporary)

    async def adopt(self, info: SandboxInfo, process_id: str) -> Remnant:
        """End the processes that are left, as the runner lost its input with its host; its journal can be read."""
        root = Path(info.root) if info.root is not None else None
        if not info.id.startswith("local-") or (root is not None and not root.name.startswith(_PREFIX)):
            raise ConfigurationError(f"sandbox {info.id} in {root} is not a local sandbox")
        self.name, self.work = info.id, Path(info.work)
        self._root, self._temporary = Path(info.journal).parent, root
        await asyncio.to_thread(_kill_runner, self.name, process_id)
        await asyncio.to_thread(_kill_marked, self.name)
        if not await asyncio.to_thread(_has_files, Path(info.journal), self.work):
            raise SandboxGoneError(f"{AGENT_LOST}; its files no longer exist")
        return Remnant(process_id)

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        """Start ``agent_runner`` with this Python interpreter."""
        assert self._root is not None, "create() comes first"
        home = {
            "HOME": str(self._root / "home"),
            "CLAUDE_CONFIG_DIR": str(self._root / "home" / ".claude"),
            # Else the CLI leaves output of commands and images of prompts in a temporary directory of its own.
            "CLAUDE_CODE_TMPDIR": str(self._root / "tmp"),
        }
        own = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        oom_before = oom_kills()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                # The runner and its guardians hide their environment, but not their command line.
                "-X",
                mark_option(self.name),
                "-m",
                "agent_runner",
                *args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**own, **home, **env, _MARK: self.name},
                cwd=self.work,
                # Ctrl-C in the terminal must reach the host only.
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxStartError(f"cannot start the runner: {error}") from error
        started = LocalProcess(process, oom_before)
        self._processes.append(started)
        return started

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Return the last event in a runner's journal and whether the runner still runs."""
        line = await asyncio.to_thread(_last_line, Path(journal))
        return Progress(seq_in(line), any(each.id == process_id and each.is_running for each in self._processes))

    async def upload(self, source: Path) -> None:
        """Copy a file, or a folder's contents, into the working directory; symbolic links stay links."""
        if self._given is not None:
            raise ConfigurationError("upload and a working directory of your own exclude each other: copy it yourself")
        await asyncio.to_thread(_copy, source, self.work)

    async def download(self, target: Path) -> None:
        """Copy the working directory's contents into a folder; symbolic links stay links."""
        await asyncio.to_thread(_copy, self.work, target)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return the content of a file; ``path`` is relative to the working directory."""
        return await asyncio.to_thread(_read, self.work, path, max_bytes)

    async def execute(self, program: str, data: bytes, max_bytes: int) -> bytes:
        """Run a Python program in the working directory; return its stdout."""
        pipe = asyncio.subprocess.PIPE
        own = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        command = (sys.executable, "-I", "-c", program)
        if not self.work.is_dir():
            raise SandboxError(f"the working folder {self.work} no longer exists")
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, env=own, cwd=self.work, start_new_session=True
        )
        try:
            out, words = await process.communicate(data)
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        if process.returncode != 0:
            raise SandboxError(f"a program failed in {self.work}: {words.decode('utf-8', 'replace').strip()[-300:]}")
        if len(out) > max_bytes:
            raise SandboxError(f"the folder has more changes than {max_bytes:,} bytes")
        return out

    async def leave(self) -> None:
        """Stop reading the processes, which continue, and keep the directories."""
        for process in self._processes:
            process.leave()
        self._root = self._temporary = None

    async def close(self) -> None:
        """Kill the processes that still run, and remove the temporary directory."""
        for process in self._processes:
            await process.kill()
        await asyncio.to_thread(_kill_marked, self.name)
        temporary, self._temporary, self._root = self._temporary, None, None
        if temporary is not None:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and the group of its children; SIGTERM first, so that it removes its temporary files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.communicate(), _END_SECONDS)  # a full pipe would hold the process


def _kill_runner(name: str, process_id: str) -> None:
    """Kill the process that was started, and wait until the runner's guardian has ended the other processes."""
    if process_id in _marked(name):
        with contextlib.suppress(OSError):
            os.kill(int(process_id), signal.SIGKILL)
        until = time.monotonic() + _END_SECONDS
        while any(_marked(name)) and time.monotonic() < until:
            time.sleep(0.02)  # no notification: the guardian is not a child of this process


def _kill_marked(name: str) -> None:
    """Kill every process of a sandbox that is left, as of a runner without a guardian."""
    for process_id in _marked(name):
        with contextlib.suppress(OSError):
            os.kill(int(process_id), signal.SIGKILL)


def _marked(name: str) -> Iterator[str]:
    """Yield the ids of a sandbox's processes: each tool has a process group of its own.

    They are recognised by the variable `_MARK`, and the runner and its guardians by an option of the interpreter.
    """
    marks = {"environ": f"{_MARK}={name}".encode(), "cmdline": mark_option(name).encode()}
    for process in Path("/proc").glob("[0-9]*"):
        for file, mark in marks.items():
            with contextlib.suppress(OSError):
                if mark in (process / file).read_bytes().split(b"\0"):
                    yield process.name
                    break


def mark_option(name: str) -> str:
    """Return the option of a sandbox's interpreter that names the sandbox; Python ignores unknown `-X` options."""
    return f"sandspan={name}"


def _has_files(journal: Path, work: Path) -> bool:
    return journal.is_file() and work.is_dir()


def _last_line(journal: Path) -> bytes:
    """Return the beginning of a journal's last line; empty if the file is empty or missing."""
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
    """Return the content of a file in the working directory.

    A link that is changed between check and read is no risk: the agent can read all that this user can.
    """
    try:
        file_path = (work / inner_path(path)).resolve(strict=True)
        if not file_path.is_relative_to(work.resolve()):
            raise FileRefusedError(f"{path!r} leads out of the working directory")
        if not file_path.is_file():
            raise FileRefusedError(f"{path!r} is not a regular file")
        with file_path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissingError(f"the working directory has no file {path!r}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise FileRefusedError(f"{path!r} cannot be read: {error}") from error
    if len(content) > max_bytes:
        raise FileTooLargeError(f"{path!r} is larger than {max_bytes} bytes")
    return content


class LocalProcess:
    """A process of a local sandbox: a child process of the host."""

    def __init__(self, process: asyncio.subprocess.Process, oom_before: int) -> None:
        self._process = process
        self._oom_before = oom_before
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_LINES)
        self._draining = asyncio.ensure_future(self._drain_stderr())
        self.pid = process.pid

    @property
    def id(self) -> str:
        """Return the process id."""
        return str(self.pid)

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._stderr.append(chunk)

    async def output(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks until it ends; the pipe of a child process cannot be lost."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(_CHUNK):
            yield chunk

    async def disconnect(self) -> None:
        """Do nothing: a runner whose stdout is not read continues."""

    @property
    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.returncode is None

    async def write(self, data: bytes) -> None:
        """Write to stdin; raise `StreamLostError` if the process has closed it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: the transport is closed
            raise StreamLostError("the runner accepts no more commands") from error

    async def close_input(self) -> None:
        """Close stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def wait(self) -> Exit:
        """Wait for the process to end; return how it ended."""
        code = await self._process.wait()
        await self._draining
        stderr = b"".join(self._stderr).decode("utf-8", "replace")
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return Exit(code, killed and oom_kills() > self._oom_before, stderr)

    async def terminate(self) -> None:
        """Send SIGTERM; no error if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def kill(self) -> None:
        """Kill the process group, and wait until the runner's guardian has ended all processes below it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.wait((self._draining,), timeout=_END_SECONDS)  # the guardian has stderr open until its own end
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._draining.cancel()

    def leave(self) -> None:
        """Stop reading stderr; the process continues."""
        self._draining.cancel()


class Remnant:
    """Stands for a runner that ended with its host; only its journal is left."""

    def __init__(self, process_id: str) -> None:
        self.id = process_id

    async def output(self) -> AsyncIterator[bytes]:
        """Yield nothing, as the events are in the journal."""
        return
        yield b""

    async def disconnect(self) -> None:
        """Do nothing, as no output is read."""

    async def write(self, data: bytes) -> None:
        """Raise `StreamLostError`, as the runner has ended."""
        raise StreamLostError(AGENT_LOST)

    async def close_input(self) -> None:
        """Do nothing, as the runner has ended."""

    async def wait(self) -> Exit:
        """Raise `SandboxGoneError`, as the exit code is unknown."""
        raise SandboxGoneError(AGENT_LOST)

    async def terminate(self) -> None:
        """Do nothing, as the runner has ended."""

    async def kill(self) -> None:
        """Do nothing, as the runner has ended."""
