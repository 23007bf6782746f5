"""What a session needs of a sandbox, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol


class Exit(NamedTuple):
    """How a process ended: its exit code, negative for a signal; whether memory ran out; its last words."""

    code: int
    out_of_memory: bool = False
    stderr: str = ""


@dataclass(frozen=True)
class SandboxInfo:
    """What is known of a sandbox. ``attributes`` go on the span ``sandbox.create``."""

    id: str
    kind: str
    work: str
    """The agent's working directory in the sandbox."""
    journal: str
    conversation: str | None = None
    """Claude's session id of the conversation that was left in it, in a sandbox that was resumed."""
    attributes: Mapping[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])


class Process(Protocol):
    """One process in a sandbox."""

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
