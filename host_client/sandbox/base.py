"""What a session needs of a sandbox, and no more."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from host_client.errors import FileRefusedError


class Exit(NamedTuple):
    """How a process ended: its exit code, negative for a signal; whether memory ran out; its last words."""

    code: int
    out_of_memory: bool = False
    stderr: str = ""


class Progress(NamedTuple):
    """The ``seq`` of the last event in a runner's journal, 0 for none, and whether the runner still runs."""

    last_seq: int
    is_running: bool


@dataclass(frozen=True)
class SandboxInfo:
    """What is known of a sandbox, as JSON too. ``attributes`` go on the span ``sandbox.create``."""

    id: str
    kind: str
    work: str
    """The agent's working directory in the sandbox."""
    journal: str
    conversation: str | None = None
    """Claude's session id of the conversation that was left in it, in a sandbox that was resumed."""
    attributes: Mapping[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])
    root: str | None = None
    """The directory on this machine that goes with it, in a local sandbox."""


def inner_path(path: str) -> PurePosixPath:
    """Return a path below the working directory; raise `FileRefusedError` for one that leads elsewhere."""
    inner = PurePosixPath(path)
    if not inner.parts or inner.is_absolute() or ".." in inner.parts or "\0" in path:
        raise FileRefusedError(
            f"{path[:200]!r} is no path within the working directory: name it from there, without .."
        )
    return inner


LINE_HEAD_BYTES = 512
"""The part of a journal's line that `seq_in` needs: an event's ``seq`` comes before its data."""

_SEQ = re.compile(rb'"seq":([0-9]{1,15})[,}]')


def seq_in(line: bytes) -> int:
    """Return the ``seq`` in the beginning of a journal's line; 0 if there is none."""
    found = _SEQ.search(line[:LINE_HEAD_BYTES])
    return int(found[1]) if found else 0


class Process(Protocol):
    """One process in a sandbox; `Sandbox.adopt` finds it by its ``id``."""

    @property
    def id(self) -> str:
        """Its number, as its sandbox has it."""
        ...

    def output(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks of any size until it ends; raise `StreamLostError` on a lost connection.

        A reader that was cancelled can call it again and has lost nothing.
        """
        ...

    async def disconnect(self) -> None:
        """Stop reading stdout; the process goes on, and can still be written to and waited for."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to stdin; raise `StreamLostError` when nothing takes it."""
        ...

    async def close_input(self) -> None:
        """Close stdin; again is no error."""
        ...

    async def wait(self) -> Exit:
        """Wait for the process to end."""
        ...

    async def terminate(self) -> None:
        """Ask the process to end (SIGTERM, where the sandbox has it); no error if it has ended."""
        ...

    async def kill(self) -> None:
        """End the process and what it started; no error if it has ended."""
        ...


class Sandbox(Protocol):
    """A place to run a runner in, made by one call and gone by another."""

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Make it, and note ``metadata`` on it where it can be listed; raise `SandboxStartError`."""
        ...

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> Process:
        """Start ``agent_runner`` with these arguments and variables; raise `SandboxStartError`."""
        ...

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Return how far a runner has come.

        It is called every 20 seconds while a runner is silent, so it must be cheap.
        Raise `SandboxGoneError`, or another `SandboxError` where the sandbox does not answer.
        """
        ...

    async def adopt(self, info: SandboxInfo, process_id: str) -> Process:
        """Take over, in place of `create`, what a host that died has made; return its runner, without its output.

        Raise `SandboxGoneError` where nothing is left of it. A runner that could not outlive its host is ended, and
        waiting for it raises that too.
        """
        ...

    async def leave(self) -> None:
        """Let go of it, in place of `close`: it and its processes go on, as another host's."""
        ...

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the working directory; ``path`` is relative to that.

        Raise `FileRefusedError` for what is no regular file within it, `FileMissingError` and `FileTooLargeError`.
        """
        ...

    async def upload(self, source: Path) -> None:
        """Copy a file, or a folder's contents, into the working directory."""
        ...

    async def download(self, target: Path) -> None:
        """Copy the working directory's contents into a folder."""
        ...

    async def close(self) -> None:
        """End everything in it and remove it, or set it aside if it is to be kept; again is no error.

        Raise `SandboxError` where it may have been left behind.
        """
        ...
