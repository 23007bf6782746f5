"""A sandbox that replays a recorded run: it writes the recorded lines and waits for each recorded command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from host_client.errors import SandboxError, StreamLostError
from host_client.sandbox import Exit, Progress, SandboxInfo
from tests.compat.recordings import Json, Recording, Step, without_id

RUNNER = "7"
"""The runner's process id in all recordings."""


class Played:
    """A `Sandbox` that replays a recording to the host.

    ``loses_after``: the live stream fails once, after the event with this sequence number. ``seen``: sequence number of
    the last event that an earlier host has read; the commands before it count as sent, and the tested host takes over.
    The host's input is recorded: ``metadata``, ``environments`` by the first argument, ``arguments``, ``commands``.
    """

    def __init__(self, recording: Recording, *, loses_after: int | None = None, seen: int = 0) -> None:
        self.recording = recording
        self.loses_after = loses_after
        self.info = recording.whereabouts.info
        if seen:  # a session in a local sandbox cannot be taken over
            self.info = replace(self.info, kind="e2b")
        self.metadata: dict[str, str] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.arguments: list[tuple[str, ...]] = []
        self.commands: list[Json] = [command for seq, command in recording.commands_after if seq < seen]
        self.closed = 0
        self.written = 0
        """Number of steps that the runner has made."""
        self.moved = asyncio.Condition()

    @property
    def has_ended(self) -> bool:
        """Return whether the runner has made its last step."""
        return self.written == len(self.recording.steps)

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        self.metadata = dict(metadata)
        return self.info

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> PlayedProcess:
        self.arguments.append(args)
        self.environments[args[0]] = dict(env)
        if args == ("run",):
            return PlayedProcess(self, None)
        kind, after, number, journal, path = args
        assert (kind, after, journal, path) == ("attach", "--after", "--journal", self.info.journal), args
        return PlayedProcess(self, int(number))

    async def progress(self, journal: str, process_id: str) -> Progress:
        return Progress(0, is_running=True)

    async def adopt(self, info: SandboxInfo, process_id: str) -> PlayedProcess:
        assert (info, process_id) == (self.info, self.recording.whereabouts.process_id)
        return PlayedProcess(self, None, adopted=True)

    async def advance(self) -> None:
        """Make the runner's steps up to the next command that the host has not sent yet."""
        async with self.moved:
            while not self.has_ended and (step := self.recording.steps[self.written]):
                if step.is_command and len(self.commands) <= self._commands_before(self.written):
                    break
                self.written += 1
            self.moved.notify_all()

    def _commands_before(self, number: int) -> int:
        return sum(step.is_command for step in self.recording.steps[:number])

    async def take(self, data: bytes) -> None:
        """Receive the command lines that the host writes to the runner's stdin."""
        if self.has_ended:
            raise StreamLostError("the runner has ended")
        for line in data.splitlines():
            self.commands.append(without_id(Step(line.decode(), True).value))
        await self.advance()

    async def leave(self) -> None:
        pass

    async def upload(self, source: Path) -> None:
        raise SandboxError("nothing is uploaded here")

    async def download(self, target: Path) -> None:
        raise SandboxError("nothing is downloaded here")

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        raise SandboxError("it has no files")

    async def close(self) -> None:
        self.closed += 1


class PlayedProcess:
    """The replayed runner (``after`` is None), or a reader of its journal after a sequence number."""

    id = RUNNER

    def __init__(self, sandbox: Played, after: int | None, *, adopted: bool = False) -> None:
        self._sandbox = sandbox
        self._after = after
        self._adopted = adopted
        self._is_killed = False

    async def output(self) -> AsyncIterator[bytes]:
        if self._adopted:  # the host reads an adopted runner's events from the journal
            return
        sandbox, steps = self._sandbox, self._sandbox.recording.steps
        await sandbox.advance()
        for number, step in enumerate(steps):
            async with sandbox.moved:
                await sandbox.moved.wait_for(lambda number=number: sandbox.written > number or self._is_killed)
            if self._is_killed:
                return
            if self._says(step):
                yield step.line.encode() + b"\n"
                self._lose(step)

    def _says(self, step: Step) -> bool:
        if self._after is None:
            return not step.is_command
        return step.seq > self._after

    def _lose(self, step: Step) -> None:
        if self._after is None and step.seq and step.seq == self._sandbox.loses_after:
            raise StreamLostError("the connection was cut")

    async def disconnect(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        await self._sandbox.take(data)

    async def close_input(self) -> None:
        pass

    async def wait(self) -> Exit:
        if self._after is not None:  # `attach` exits with 3 if the journal has no `end` event
            return Exit(0 if self._sandbox.recording.events[-1]["type"] == "end" else 3)
        return Exit(self._sandbox.recording.about["exit_code"])

    async def terminate(self) -> None:
        await self.kill()

    async def kill(self) -> None:
        self._is_killed = True
        async with self._sandbox.moved:
            self._sandbox.moved.notify_all()
