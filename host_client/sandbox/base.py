"""What a session needs of a sandbox, and no more."""

from __future__ import annotations

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


class Process(Protocol):
    """One process in a sandbox; `Sandbox.adopt` finds it by its ``id``."""

    @property
    def id(self) -> str:
        """Its number, as its sandbox has it."""
        ...

    def output(self) -> AsyncIterator[bytes]:
        """Yield stdout in chunks of any size until it ends; raise `StreamLostError` on a lost connection."""
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
