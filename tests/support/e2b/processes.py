"""The processes of a sandbox: real ones, of this machine, with envd's rules for their output.

What a process writes goes to those who are connected at that moment and is lost when nobody is; one
who does not read stalls the process. The end is kept for 30 seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .accounts import Account
from .connect_protocol import RpcError

KEEP_END_SECONDS = 30.0
MARK = "E2B_SANDBOX_ID"
"""In the environment of everything that runs in a sandbox: whose it is."""

_READ_BYTES = 32 * 1024  # what envd reads at a time
_QUEUED_EVENTS = 64  # what envd buffers for one who does not read
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Event: TypeAlias = dict[str, Any]
"""A ``process.ProcessEvent`` as JSON."""

Chunking: TypeAlias = Callable[[bytes], Iterable[bytes]]
"""Splits the bytes of one read into data events."""


def whole(data: bytes) -> Iterable[bytes]:
    """Leave a read as it is."""
    return (data,)


class Subscription:
    """The events that wait for one reader; ``None`` follows the end event."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue(_QUEUED_EVENTS)

    async def put(self, event: Event | None) -> None:
        """Wait until there is room."""
        await self._events.put(event)

    def put_now(self, event: Event | None) -> None:
        """Put where there is room."""
        self._events.put_nowait(event)

    async def get(self) -> Event | None:
        """Wait for the next event."""
        return await self._events.get()

    def abandon(self) -> None:
        """Release writers that wait for room."""
        while not self._events.empty():
            self._events.get_nowait()


@dataclass(frozen=True)
class Command:
    """A command to start; `environment_of` adds to its ``environment``."""

    cmd: str
    args: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    account: Account
    stdin: bool
    tag: str | None = None
    envs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables of the request, as `List` reports them."""

    def to_dict(self) -> Event:
        """Return it as a ``process.ProcessConfig``."""
        return {"cmd": self.cmd, "args": list(self.args), "envs": dict(self.envs), "cwd": str(self.cwd)}


def environment_of(account: Account, *layers: Mapping[str, str]) -> dict[str, str]:
    """Return the base environment of a command with the layers over it, the last one winning."""
    base = {"PATH": _PATH, "HOME": str(account.home), "USER": account.name, "LOGNAME": account.name}
    for layer in layers:
        base.update(layer)
    return base


class Process:
    """A running command and its connected readers."""

    def __init__(self, command: Command, child: asyncio.subprocess.Process, chunking: Chunking) -> None:
        self.command, self.pid = command, child.pid
        self.end: Event | None = None
        self.received = bytearray()
        """Bytes that were written to its stdin."""
        self.lost = bytearray()
        """Bytes that it wrote to stdout or stderr while no client was connected."""
        self._child, self._chunking = child, chunking
        self._subscriptions: list[Subscription] = []
        self._stdin = child.stdin
        if self._stdin is not None:
            # envd's write returns when the pipe has taken it all; asyncio would buffer.
            self._stdin.transport.set_write_buffer_limits(0)
        self._stdin_lock = asyncio.Lock()
        self._no_more_output = asyncio.Event()
        self.finished = asyncio.create_task(self._run())

    @classmethod
    async def start(cls, command: Command, chunking: Chunking) -> Process:
        """Start a command in a session of its own."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        account = command.account
        ids: dict[str, Any] = {}
        if account.uid is not None:
            ids = {"user": account.uid, "group": account.gid, "extra_groups": []}
        try:
            child = await asyncio.create_subprocess_exec(
                command.cmd,
                *command.args,
                stdin=pipe if command.stdin else null,
                stdout=pipe,
                stderr=pipe,
                cwd=command.cwd,
                env=dict(command.environment),
                start_new_session=True,
                **ids,
            )
        except OSError as error:
            raise RpcError("invalid_argument", f"error starting process '{command.cmd}': {error}") from error
        return cls(command, child, chunking)

    @property
    def readers(self) -> int:
        """Return the number of connected readers."""
        return len(self._subscriptions)

    def subscribe(self) -> Subscription:
        """Get every event from now on."""
        subscription = Subscription()
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Get no more."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        subscription.abandon()

    async def write(self, data: bytes) -> None:
        """Write to stdin, and wait until the pipe has it."""
        async with self._stdin_lock:
            if self._stdin is None:
                raise RpcError("failed_precondition", "error writing to stdin: stdin not enabled or closed")
            try:
                self._stdin.write(data)
                await self._stdin.drain()
            except OSError as error:
                message = f"error writing to stdin: error writing to stdin of process '{self.pid}': {error}"
                raise RpcError("failed_precondition", message) from error
            self.received += data

    async def close_stdin(self) -> None:
        """Close stdin; a second time does nothing."""
        async with self._stdin_lock:
            stdin, self._stdin = self._stdin, None
            if stdin is not None:
                stdin.close()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; its children stay, as envd leaves them."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._no_more_output.set()  # envd then waits for the process, not for its pipes
        if self._child.returncode is None:  # else the number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _run(self) -> None:
        readers = asyncio.gather(self._read("stdout", self._child.stdout), self._read("stderr", self._child.stderr))
        cut = asyncio.ensure_future(self._no_more_output.wait())
        await asyncio.wait([readers, cut], return_when=asyncio.FIRST_COMPLETED)
        await self._exited()
        for task in (readers, cut):
            task.cancel()
        await asyncio.gather(readers, cut, return_exceptions=True)
        self._close_pipes()
        self.end = end_event(await self._child.wait())
        for subscription in list(self._subscriptions):
            await subscription.put({"end": self.end})
            await subscription.put(None)

    async def _exited(self) -> None:
        """Wait for the process alone; asyncio would also wait for its pipes, which a grandchild may hold."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _read(self, name: str, pipe: asyncio.StreamReader | None) -> None:
        assert pipe is not None
        while data := await pipe.read(_READ_BYTES):
            for chunk in self._chunking(data):
                await self._publish(name, chunk)

    async def _publish(self, name: str, chunk: bytes) -> None:
        if not self._subscriptions:
            self.lost += chunk
        event = {"data": {name: b64encode(chunk).decode()}}
        for subscription in list(self._subscriptions):
            await subscription.put(event)

    def _close_pipes(self) -> None:
        # The transport is not public, and a grandchild that holds a pipe would keep it open for good.
        transport: asyncio.SubprocessTransport = getattr(self._child, "_transport")  # noqa: B009
        for descriptor in (0, 1, 2):
            # Not the process's own transport: closing that polls, and so may take the exit code from who waits for it.
            if (pipe := transport.get_pipe_transport(descriptor)) is not None:
                pipe.close()


def end_event(code: int) -> Event:
    """Return the end event as Go describes an exit; a signal is -1, not 128 plus its number."""
    if code < 0:
        status = f"signal: {signal.strsignal(-code) or -code}".lower()
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    status = f"exit status {code}"
    end: Event = {"exitCode": code, "exited": True, "status": status}
    return end if code == 0 else {**end, "error": status}


class ProcessTable:
    """The processes of one sandbox, by pid; an ended one is found by `connect` for 30 seconds."""

    def __init__(self, chunking: Chunking = whole) -> None:
        self.all: list[Process] = []
        """Every process there ever was, the oldest first."""
        self.chunking = chunking
        self._living: dict[int, Process] = {}
        self._ended: dict[int, tuple[Process, float]] = {}
        self._removals: set[asyncio.Task[None]] = set()

    @property
    def living(self) -> list[Process]:
        """Return the processes that have not ended."""
        return list(self._living.values())

    async def start(self, command: Command) -> Process:
        """Start a command."""
        process = await Process.start(command, self.chunking)
        self.all.append(process)
        self._living[process.pid] = process
        removal = asyncio.create_task(self._remove(process))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return process

    async def _remove(self, process: Process) -> None:
        await process.finished
        self._living.pop(process.pid, None)
        self._ended[process.pid] = (process, time.monotonic())

    def find(self, selector: Mapping[str, Any]) -> Process:
        """Return the living process of a ``process.ProcessSelector``."""
        for process in self._living.values():
            if process.end is None and _selects(selector, process):
                return process
        raise _not_found(selector)

    def find_or_ended(self, selector: Mapping[str, Any]) -> Process:
        """Return the process, also one that ended a moment ago."""
        now = time.monotonic()
        for process, ended in self._ended.values():
            if now - ended < KEEP_END_SECONDS and _selects(selector, process):
                return process
        for process in self._living.values():
            if _selects(selector, process):
                return process
        raise _not_found(selector)


def _selects(selector: Mapping[str, Any], process: Process) -> bool:
    if "tag" in selector:
        return process.command.tag == selector["tag"]
    return process.pid == selector.get("pid")


def _not_found(selector: Mapping[str, Any]) -> RpcError:
    kind, value = next(iter(selector.items()), ("pid", 0))
    return RpcError("not_found", f"process with {kind} {value} not found")


def signal_sandbox(sandbox_id: str, sessions: Iterable[int], number: int) -> set[int]:
    """Send a signal to all that runs in a sandbox, whatever session it is in; return their pids."""
    mark, sids, found = f"{MARK}={sandbox_id}".encode(), set(sessions), set[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            if os.getsid(pid) in sids or mark in (entry / "environ").read_bytes().split(b"\0"):
                if _state(entry) in "ZX":
                    continue
                os.kill(pid, number)
                found.add(pid)
    return found


def _state(entry: Path) -> str:
    # After the name, which may hold spaces and parentheses.
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]
