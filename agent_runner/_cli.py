"""The CLI of a run: its process, those that it starts, and the SDK's client that talks to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Transport

from ._background import RunningTask
from ._call_context import FindCall, in_call_context
from ._events import Events
from ._mcp import McpServers
from ._messages import content_of
from .contract.processes import Descendants
from .contract.protocol import LogData, Prompt

GRACE_SECONDS = 5.0
"""Seconds in which an interrupted turn must end, and in which the client must disconnect from an ended process."""

LEAVE_SECONDS = 1.0
"""Seconds in which the CLI may end by itself; it would wait 5 seconds for background processes."""

STDERR_SECONDS = 0.5
"""Seconds to wait for the last line of a CLI that has ended."""

_MAX_STDERR_LINES = 200
_MAX_STDERR_LINE = 2000


class Cli:
    """Starts, interrupts and ends the CLI; its client sends prompts and receives messages."""

    def __init__(
        self,
        options: ClaudeAgentOptions,
        events: Events,
        find_call: FindCall,
        transport: Transport | None,
        descendants: Descendants | None,
    ) -> None:
        """Prepare a CLI; with ``descendants`` its end also ends all of this process's descendants."""
        servers = in_call_context(cast("dict[str, Any]", options.mcp_servers), find_call)
        options.mcp_servers = servers
        self.client = ClaudeSDKClient(options, transport=transport)
        self.mcp = McpServers(self.client, servers)
        self.connected = asyncio.Event()
        self._events = events
        self._descendants = descendants

    async def connect(self) -> None:
        """Start the CLI's process and connect to it."""
        await self.client.connect()
        self.connected.set()
        if self._descendants is not None:
            self._descendants.started()

    def reap(self) -> None:
        """Reap the processes of former turns."""
        if self._descendants is not None:
            self._descendants.reap()

    async def send_prompt(self, prompt: Prompt, user_message_id: str) -> None:
        """Send a prompt, which has this UUID in the conversation."""

        async def message() -> AsyncIterator[dict[str, Any]]:
            content = {"role": "user", "content": content_of(prompt)}
            yield {"type": "user", "message": content, "parent_tool_use_id": None, "uuid": user_message_id}

        await self.client.query(message())

    async def interrupt(self) -> None:
        """Interrupt the turn, and subagents in the background."""
        try:
            await self.client.interrupt()
        except Exception as error:  # the CLI may have ended, which `Run` reports
            self._events.emit(LogData(stream="runner", text=f"interrupt: {error}"))

    async def stop_tasks(self, running: Iterable[RunningTask]) -> None:
        """Stop background tasks: subagents by an interrupt, after which no turn follows, others one by one."""
        running = list(running)
        if any(task.kind == "local_agent" for task in running):
            await self.interrupt()
        for task in running:
            if task.kind != "local_agent":
                try:
                    await self.client.stop_task(task.id)
                except Exception as error:  # the task or the CLI may have ended
                    self._events.emit(LogData(stream="runner", text=f"stop of a background task: {error}"))

    async def disconnect(self) -> None:
        """Disconnect from the CLI and end the processes that it leaves in the background."""
        leaving = asyncio.ensure_future(self.client.disconnect())
        await asyncio.wait((leaving,), timeout=LEAVE_SECONDS)
        await self.end_descendants()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await leaving
        except Exception as error:  # it cannot be repaired, only reported
            self._events.emit(LogData(stream="runner", text=f"disconnect: {error!r}"))

    async def end_descendants(self) -> None:
        """End all processes of the CLI, if the run has this process to itself."""
        if self._descendants is not None:
            await asyncio.to_thread(self._descendants.end)


class StderrLog:
    """Reports the first lines of the CLI's stderr in ``log`` events, and keeps the reason of a refused start."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lines = 0
        self._refusal: str | None = None
        self._ended_in_error = asyncio.Event()

    async def refusal(self) -> str | None:
        """Return the last line, if it is an error without a stack trace: so the CLI refuses a bad option.

        Wait `STDERR_SECONDS` for it, as the SDK may report the end of the process before it has read the line.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STDERR_SECONDS):
                await self._ended_in_error.wait()
        return self._refusal

    def add(self, line: str) -> None:
        """Take a line (the SDK's callback)."""
        self._lines += 1
        if line.strip():
            text = line[:_MAX_STDERR_LINE]
            self._refusal = text[len("error: ") :] if text.lower().startswith("error: ") else None
            if self._refusal is not None:
                self._ended_in_error.set()
        if self._lines <= _MAX_STDERR_LINES:
            self._events.emit(LogData(stream="stderr", text=line[:_MAX_STDERR_LINE]))
        elif self._lines == _MAX_STDERR_LINES + 1:
            self._events.emit(LogData(stream="runner", text="further lines of the CLI's stderr are left out"))
