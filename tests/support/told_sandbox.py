"""A sandbox whose runner emits what a test dictates, for situations that a real runner cannot be brought into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from agent_runner.contract.protocol import (
    COMMAND_TYPES,
    CallbackResponse,
    EndData,
    EventData,
    StartData,
    Stop,
    decode_command,
    encode,
    event_of,
)
from host_client.errors import SandboxError, StreamLostError
from host_client.sandbox import Exit, Progress, SandboxInfo

START = StartData(
    session_id="claude",
    model="m",
    tools=[],
    cwd="/",
    permission_mode="default",
    resumed=False,
    runner_version="0",
    takes_attachments=True,
    commands=list(COMMAND_TYPES),
)


class ToldProcess:
    """A runner, or a follower of its journal."""

    id = "1"

    def __init__(self, sandbox: ToldSandbox) -> None:
        self._sandbox = sandbox
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def output(self) -> AsyncIterator[bytes]:
        while (line := await self.lines.get()) is not None:
            yield line

    async def disconnect(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        self._sandbox.take(data)

    async def close_input(self) -> None:
        pass

    async def wait(self) -> Exit:
        return Exit(0)

    async def terminate(self) -> None:
        if not self._sandbox.is_stuck:
            self.lines.put_nowait(None)

    async def kill(self) -> None:
        if self._sandbox.is_stuck:
            await asyncio.Event().wait()
        self.lines.put_nowait(None)


class ToldSandbox:
    """``is_deaf``: its runner takes no command. ``fails``: what taking it over raises, one after the other.

    ``is_stuck``: its runner heeds no signal, and a request to kill it gets no answer.
    """

    def __init__(self, trace_id: str) -> None:
        self.commands: list[str] = []
        self.responses: asyncio.Queue[CallbackResponse] = asyncio.Queue()
        self.closed = 0
        self.is_deaf = False
        self.start = START
        self.is_stuck = False
        self.fails: list[Exception] = []
        self.may_be_made = asyncio.Event()
        self.may_be_made.set()
        self.is_being_made = asyncio.Event()
        self.stops = True
        """True if the runner ends when it gets a stop command."""
        self._trace_id = trace_id
        self._journal: list[bytes] = []
        self._processes: list[ToldProcess] = []

    def say(self, *data: EventData) -> None:
        """Make the runner emit a line."""
        for each in data:
            seq = len(self._journal) + 1
            event = event_of(each, seq=seq, ts=time.time(), trace_id=self._trace_id, span_id="1" * 16)
            self._journal.append(encode(event))
            for process in self._processes:
                process.lines.put_nowait(self._journal[-1])

    def end(self) -> None:
        self.say(EndData(reason="stopped", exit_code=0))
        for process in self._processes:
            process.lines.put_nowait(None)

    def take(self, data: bytes) -> None:
        if self.is_deaf:
            raise StreamLostError("nobody takes it")
        command = decode_command(data)
        self.commands.append(str(command.__struct_config__.tag))
        if isinstance(command, CallbackResponse):
            self.responses.put_nowait(command)
        if isinstance(command, Stop) and self.stops:
            self.end()

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        self.is_being_made.set()
        await self.may_be_made.wait()
        return SandboxInfo(id="told", kind="told", work="/", journal="/journal")

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> ToldProcess:
        process = ToldProcess(self)
        for line in self._journal:
            process.lines.put_nowait(line)
        self._processes.append(process)
        if args[0] == "run":
            self.say(self.start)
        return process

    async def progress(self, journal: str, process_id: str) -> Progress:
        return Progress(len(self._journal), True)

    async def adopt(self, info: SandboxInfo, process_id: str) -> ToldProcess:
        if self.fails:
            raise self.fails.pop(0)
        process = ToldProcess(self)
        process.lines.put_nowait(None)  # its live output is not used
        return process

    async def upload(self, source: Path) -> None:
        raise SandboxError("nothing can be uploaded")

    async def download(self, target: Path) -> None:
        raise SandboxError("nothing can be downloaded")

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        raise SandboxError("it has no files")

    async def leave(self) -> None:
        pass

    async def close(self) -> None:
        self.closed += 1
