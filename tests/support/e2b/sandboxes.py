"""The sandboxes with their requests, lifetimes and processes."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from .accounts import Accounts
from .processes import Chunking, Process, ProcessTable, signal_sandbox, whole

ENVD_VERSION = "0.6.13"
DEFAULT_TIMEOUT = 300
"""Seconds; what E2B takes when a request names none."""

State = Literal["running", "paused", "gone"]


@dataclass(frozen=True)
class Template:
    """The template of a sandbox."""

    id: str
    name: str
    cpu_count: int = 2
    memory_mb: int = 512
    disk_mb: int = 1024


@dataclass
class Sandbox:
    """One sandbox; ``request`` is the body it was created with."""

    id: str
    template: Template
    request: dict[str, Any]
    root: Path
    accounts: Accounts
    on_expiry: Callable[[Sandbox], object]
    end_at: datetime = field(init=False)
    access_token: str = field(default_factory=lambda: secrets.token_hex(16))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: State = "running"
    port_open: bool = True
    table: ProcessTable = field(default_factory=ProcessTable)
    network: dict[str, Any] = field(init=False)
    timeouts: list[int] = field(default_factory=list[int])
    """Every lifetime in seconds that was asked for, the one at creation first."""
    _expiry: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.network = dict(self.request.get("network") or {})
        self.expire_in(int(self.request.get("timeout", DEFAULT_TIMEOUT)))

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata by which the sandbox can be listed."""
        return dict(self.request.get("metadata") or {})

    @property
    def envs(self) -> dict[str, str]:
        """Return the variables of all commands in the sandbox."""
        return dict(self.request.get("envVars") or {})

    @property
    def processes(self) -> list[Process]:
        """Return all processes of the sandbox, also ended ones."""
        return list(self.table.all)

    @property
    def lifecycle(self) -> dict[str, Any]:
        """Return what happens at the end of the sandbox's time."""
        resume: dict[str, Any] = self.request.get("autoResume") or {}
        return {
            "onTimeout": "pause" if self.request.get("autoPause") else "kill",
            "autoResume": bool(resume.get("enabled", False)),
        }

    def expire_in(self, seconds: int) -> None:
        """Set the end to this number of seconds from now."""
        self.timeouts.append(seconds)
        self.end_at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.stop_clock()
        self._expiry = asyncio.get_running_loop().call_later(seconds, self.on_expiry, self)

    def stop_clock(self) -> None:
        """Cancel the end of the sandbox's time."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def signal_all(self, number: int) -> set[int]:
        """Send a signal to all processes of the sandbox; return their pids."""
        return signal_sandbox(self.id, [process.pid for process in self.table.living], number)


class Sandboxes:
    """All sandboxes, also ended ones, by id."""

    def __init__(self, root: Path, unprivileged: str, on_interrupt: Callable[[Sandbox], None]) -> None:
        self._root, self._unprivileged = root, unprivileged
        self._on_interrupt = on_interrupt
        self._by_key: dict[str, Sandbox] = {}
        self.by_id: dict[str, Sandbox] = {}
        self.chunking: Chunking = whole
        self._background: set[asyncio.Task[None]] = set()

    def create(self, template: Template, request: dict[str, Any], key: str | None) -> Sandbox:
        """Create a sandbox; the same idempotency key gives the same sandbox."""
        if key is not None and key in self._by_key:
            return self._by_key[key]
        sandbox_id = f"i{secrets.token_hex(10)}"
        root = self._root / sandbox_id
        root.mkdir()
        accounts = Accounts(root / "home", self._unprivileged)
        sandbox = Sandbox(sandbox_id, template, request, root, accounts, on_expiry=self._expire)
        sandbox.table.chunking = self._chunk
        self.by_id[sandbox_id] = sandbox
        if key is not None:
            self._by_key[key] = sandbox
        return sandbox

    def _chunk(self, data: bytes) -> Iterable[bytes]:
        return self.chunking(data)

    def existing(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox that runs or is paused."""
        sandbox = self.by_id.get(sandbox_id)
        return sandbox if sandbox is not None and sandbox.state != "gone" else None

    def running(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox that runs."""
        sandbox = self.by_id.get(sandbox_id)
        return sandbox if sandbox is not None and sandbox.state == "running" else None

    def pause(self, sandbox: Sandbox) -> None:
        """Stop all processes and end the streams."""
        sandbox.state = "paused"
        sandbox.stop_clock()
        stopped = set[int]()
        while forked := sandbox.signal_all(signal.SIGSTOP) - stopped:
            stopped |= forked
        self._on_interrupt(sandbox)

    def resume(self, sandbox: Sandbox, timeout: int) -> None:
        """Continue all processes."""
        sandbox.state = "running"
        sandbox.expire_in(timeout)
        sandbox.signal_all(signal.SIGCONT)

    async def kill(self, sandbox: Sandbox) -> None:
        """Kill all processes and remove the sandbox's directory."""
        sandbox.state = "gone"
        sandbox.stop_clock()
        self._on_interrupt(sandbox)
        # Repeated, as a process may fork meanwhile; polled, as the end of a process that is not a child has no event.
        while sandbox.signal_all(signal.SIGKILL):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for process in sandbox.table.living:
            process.signal(signal.SIGKILL)  # its pipes may be held by one that outlives it by a moment
            await process.finished
        shutil.rmtree(sandbox.root, ignore_errors=True)

    def _expire(self, sandbox: Sandbox) -> None:
        if sandbox.lifecycle["onTimeout"] == "pause":
            self.pause(sandbox)
            return
        task = asyncio.create_task(self.kill(sandbox))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Kill every sandbox."""
        await asyncio.gather(*self._background)
        for sandbox in self.by_id.values():
            if sandbox.state != "gone":
                await self.kill(sandbox)
