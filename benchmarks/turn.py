"""Run one turn over the replaying transport: with the bare SDK, with a hook that does nothing, or with the runner."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, HookMatcher

from agent_runner._config import Config
from agent_runner._events import Events
from agent_runner._journal import Journal
from agent_runner._run import Run
from agent_runner._sdk_options import agent_options
from agent_runner._telemetry import Relay
from agent_runner._wire import StdoutWriter
from agent_runner.contract.protocol import LogData, TelemetryData
from agent_runner.contract.trace_context import TraceContext

from .replay import ReplayTransport

CONTEXT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")

Variant = Callable[[int], Coroutine[Any, Any, ReplayTransport]]


def options() -> ClaudeAgentOptions:
    """Return the runner's own SDK options without its callbacks, so that all variants get the same messages."""
    ours = agent_options(
        Config(),
        {},
        CONTEXT,
        can_use_tool=_never,
        on_tool_end=_nothing,
        on_stderr=lambda _line: None,
        host_servers={},
        host_hooks={},
        partial_messages=True,
        deep_environ={},
    )
    return replace(ours, can_use_tool=None, hooks=None)


async def _never(*_: Any) -> Any:
    raise AssertionError("nothing asks for a permission here")


async def _nothing(*_: Any) -> Any:
    return {}


async def bare(calls: int) -> ReplayTransport:
    """Read the turn with the SDK alone."""
    return await _read(calls, options())


async def no_op_hook(calls: int) -> ReplayTransport:
    """Read the turn with a PostToolUse hook that does nothing, which shows the SDK's own part of a hook's time."""
    return await _read(calls, replace(options(), hooks={"PostToolUse": [HookMatcher(hooks=[_nothing])]}))


async def _read(calls: int, given: ClaudeAgentOptions) -> ReplayTransport:
    transport = ReplayTransport(calls)
    async with ClaudeSDKClient(given, transport=transport) as client:
        await client.query("go")
        async for _ in client.receive_response():
            pass
    return transport


class PreparedRelay(Relay):
    """The real relay, which signals the end of its imports, as they are no part of a call's time."""

    def __init__(self, environ: Mapping[str, str], emit: Callable[[TelemetryData | LogData], None]) -> None:
        super().__init__(environ, emit)
        self._ready = threading.Event()

    def prepare(self) -> None:
        super().prepare()
        self._ready.set()

    async def ready(self) -> None:
        await asyncio.to_thread(self._ready.wait, 60)


async def ours(calls: int) -> ReplayTransport:
    """Run the turn as `agent_runner run` does: with a journal, a pipe to another process, and relayed spans."""
    journal = Journal(None)
    transport = await _run(calls, journal)
    journal.close()
    return transport


async def recorded(calls: int) -> bytes:
    """Run the turn with the runner; return all events in its journal."""
    journal = Journal(None)
    await _run(calls, journal)
    lines = bytearray()
    while chunk := journal.read(len(lines)):
        lines += chunk
    journal.close()
    return bytes(lines)


async def _run(calls: int, journal: Journal) -> ReplayTransport:
    outlet = StdoutWriter(_drained_pipe(), journal)
    events = Events(outlet, journal, CONTEXT)
    sink = PreparedRelay({}, events.emit)
    transport = ReplayTransport(calls, sink.ready)
    run = Run(Config(prompt="go"), events, sink, CONTEXT, {}, transport=transport)
    run.control.end_of_input()
    code = await run.main()
    assert outlet.close() and code == 0
    assert journal.size > 500 * calls, "each call is at least two events"
    return transport


def _drained_pipe() -> int:
    """Return the writing end of a pipe that another process reads, as a host does.

    That process is not a child of this one, as the runner ends all its children.
    """
    reading, writing = os.pipe()
    subprocess.run(["/bin/sh", "-c", "exec 3<&0; cat <&3 3<&- >/dev/null &"], stdin=reading, check=True)
    os.close(reading)
    return writing


def seconds(variant: Variant, calls: int) -> float:
    """Return the seconds of one turn from its first call to its end."""
    return asyncio.run(variant(calls)).seconds
