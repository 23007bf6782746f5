"""The protocol of sandboxes and of the processes in them, as far as a session needs it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

from agent_runner.contract.protocol import ErrorType
from host_client.errors import FileRefusedError

TEMPORARY: tuple[ErrorType, ...] = ("network", "timeout", "overloaded", "rate_limit", "sandbox")
"""Types of a sandbox's errors after which the same request may succeed."""


class Exit(NamedTuple):
    """The end of a process: its exit code (negative for a signal), whether memory ran out, and the stderr's end."""

    code: int
    out_of_memory: bool = False
    stderr: str = ""


class Progress(NamedTuple):
    """The ``seq`` of the last event in a runner's journal, 0 for none, and whether the runner still runs."""

    last_seq: int
    is_running: bool


@dataclass(frozen=True)
class SandboxInfo:
    """Facts of a sandbox; can be stored as JSON. ``attributes`` are set on the span ``sandbox.create``."""

    id: str
    kind: str
    work: str
    """The agent's working directory in the sandbox."""
    journal: str
    conversation: str | None = None
    """Claude's session id of the conversation in a sandbox that was resumed."""
    attributes: Mapping[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])
    root: str | None = None
    """Directory on this machine that is removed together with a local sandbox."""


def inner_path(path: str) -> PurePosixPath:
    """Return a path relative to the working directory; raise `FileRefusedError` for one that leads out of it."""
    inner = PurePosixPath(path)
    if not inner.parts or inner.is_absolute() or ".." in inner.parts or "\0" in path:
        raise FileRefusedError(
            f"{path[:200]!r} is not within the working directory: use a path relative to it, without .."
        )
    return inner


LINE_HEAD_BYTES = 512
"""Number of leading bytes of a journal's line that `seq_in` needs, as an event's ``seq`` comes before its data."""

_SEQ = re.compile(rb'"seq":([0-9]{1,15})[,}]')


def seq_in(line: bytes) -> int:
    """Return the ``seq`` of an event, given the beginning of its journal line; 0 if there is none."""
    found = _SEQ.search(line[:LINE_HEAD_BYTES])
    return int(found[1]) if found else 0


class Process(Protocol):
    """One process in a sandbox; `Sandbox.adopt` finds it by its ``id``."""

    @property
    def id(self) -> str:
        """Return the process's id within its sandbox."""
        ...

    def output(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks of any size until it ends; raise `StreamLostError` on a lost connection.

        A reader that was cancelled can call this again without losing output.
        """
        ...

    async def disconnect(self) -> None:
        """Stop reading stdout; the process continues, and can still be written to and waited for."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to stdin; raise `StreamLostError` if the data cannot be delivered."""
        ...

    async def close_input(self) -> None:
        """Close stdin; a second call is no error."""
        ...

    async def wait(self) -> Exit:
        """Wait for the process to end."""
        ...

    async def terminate(self) -> None:
        """Ask the process to end, by SIGTERM if the sandbox has signals; no error if it has ended."""
        ...

    async def kill(self) -> None:
        """Kill the process and its children; no error if it has ended."""
        ...


class Sandbox(Protocol):
    """A place to run a runner in; `create` makes it and `close` removes it."""

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Create the sandbox, with ``metadata`` if sandboxes of this kind can be listed; raise `SandboxStartError`."""
        ...

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> Process:
        """Start ``agent_runner`` with these arguments and variables; raise `SandboxStartError`."""
        ...

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Return the last event in a runner's journal and whether the runner still runs.

        This is called every 20 seconds while a runner is silent, so it must be cheap.
        Raise `SandboxGoneError`, or another `SandboxError` if the sandbox does not answer.
        """
        ...

    async def adopt(self, info: SandboxInfo, process_id: str) -> Process:
        """Connect, in place of `create`, to the sandbox of a host that died; return its runner, without its output.

        Raise `SandboxGoneError` if the sandbox no longer exists. A runner that could not outlive its host is ended, and
        waiting for it raises the same error.
        """
        ...

    async def leave(self) -> None:
        """Disconnect, in place of `close`: the sandbox and its processes continue, for another host."""
        ...

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return the content of a file; ``path`` is relative to the working directory.

        Raise `FileRefusedError` if it is not a regular file in there, `FileMissingError` and `FileTooLargeError`.
        """
        ...

    async def upload(self, source: Path) -> None:
        """Copy a file, or a folder's contents, into the working directory."""
        ...

    async def download(self, target: Path) -> None:
        """Copy the working directory's contents into a folder."""
        ...

    async def close(self) -> None:
        """End all processes and remove the sandbox, or pause it if it is to be kept; a second call is no error.

        Raise `SandboxError` if the sandbox may have been left behind.
        """
        ...


@runtime_checkable
class FolderSandbox(Sandbox, Protocol):
    """A sandbox whose agent can work in a folder of the host, or in a copy of it."""

    def work_in(self, folder: Path) -> bool:
        """Let the agent work in a folder of this host, before `create`; return False if it needs a copy of its own.

        Raise `ConfigurationError` if the sandbox can have neither.
        """
        ...

    async def execute(self, program: str, data: bytes, max_bytes: int) -> bytes:
        """Run a Python program as the agent's account in the working directory; return its stdout.

        ``program`` is source that needs the standard library alone; ``data`` is its stdin. Raise `SandboxError` if it
        fails, with the end of its stderr, or writes more than ``max_bytes``.
        """
        ...
