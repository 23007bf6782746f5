"""A host in a process of its own that reports its events and is killed meanwhile.

Run as a module it is that process: it opens a session as its one argument says (JSON), and prints what another
host would find in a store.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar

import msgspec

from agent_runner.contract import protocol as p
from host_client import AgentOptions, HookMatcher, LocalSandbox, Session, current_call, host_tool, open_session
from host_client.client.session import Whereabouts
from host_client.sandbox.e2b import E2BOptions, E2BSandbox
from host_client.telemetry import Root, root_of
from tests.support.runs import SpanView, spans_in

E = TypeVar("E")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The host's actions. ``commands`` are sent with their id, each after a result, the first one at once."""

    kind: Literal["e2b", "local"]
    session_id: str
    root: Root
    commands: tuple[tuple[str, str], ...] = (("first", "go"),)
    allowed_tools: tuple[str, ...] = ()
    approve_as: str | None = None
    """The command id to approve with; None leaves requests to others."""
    outlives_host: bool = False
    host_tools: tuple[str, ...] = ()
    """Names of `HOST_TOOLS`."""
    hangs_in_hook: bool = False
    """Have a hook of prompts that never returns."""
    finish: bool = False
    """Send `finish` with the first prompt."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the host's output; ``event`` is a line of the runner's."""

    whereabouts: Whereabouts | None = None
    event: str | None = None
    done: str | None = None
    own_spans: bytes | None = None


class DyingHost:
    """The host's process and its output, as a context manager."""

    def __init__(self, plan: Plan, environ: Mapping[str, str]) -> None:
        self.plan = plan
        self.events: list[p.AnyEvent] = []
        self.own_spans: list[SpanView] = []
        self._whereabouts: Whereabouts | None = None
        own = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.dying_host", msgspec.json.encode(plan)],
            stdout=subprocess.PIPE,
            env={**own, **environ},
            cwd=Path(__file__).parents[2],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def whereabouts(self) -> Whereabouts:
        assert self._whereabouts is not None
        return self._whereabouts

    @property
    def seen_seq(self) -> int:
        return max((event.seq or 0 for event in self.events), default=0)

    async def until(self, kind: type[E], when: Callable[[E], bool] = lambda _: True) -> E:
        """Wait for an event."""
        while True:
            line = await self._line()
            if line is not None and isinstance(event := _event(line), kind) and when(event):
                return event
            assert line is not None, "the host ended before that event"

    async def until_done(self, what: str) -> None:
        """Wait for something that the host did."""
        while (line := await self._line()) is None or line.done != what:
            assert line is not None, f"the host ended before {what}"

    async def _line(self) -> Line | None:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            read = await asyncio.to_thread(self._process.stdout.readline)
        if not read.endswith(b"\n"):
            return None
        line = msgspec.json.decode(read, type=Line)
        self._whereabouts = line.whereabouts or self._whereabouts
        if (event := _event(line)) is not None:
            self.events.append(event)
        if line.own_spans is not None:
            self.own_spans.extend(spans_in(line.own_spans))
        return line

    def kill(self) -> None:
        """Kill it at once; what it printed before is not read on."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _event(line: Line) -> p.AnyEvent | None:
    if line.event is None:
        return None
    event = p.decode_event(line.event.encode())
    assert not isinstance(event, p.UnknownEvent)
    return event


def plan_of(kind: Literal["e2b", "local"], **more: object) -> Plan:
    """Return a plan for a new session."""
    given = {"kind": kind, "session_id": f"session-{os.urandom(4).hex()}", "root": root_of(), **more}
    return msgspec.convert({**given, "root": msgspec.to_builtins(given["root"])}, Plan)


def _print(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def _host(plan: Plan) -> None:
    options = E2BOptions(outlives_host=plan.outlives_host)
    sandbox = E2BSandbox(options, environ=os.environ) if plan.kind == "e2b" else LocalSandbox()
    commands = list(plan.commands)
    async with open_session(
        None,
        AgentOptions(allowed_tools=plan.allowed_tools, user_id="ada"),
        sandbox=sandbox,
        host_tools=[each for each in HOST_TOOLS if each.name in plan.host_tools],
        hooks={"UserPromptSubmit": [HookMatcher(hooks=[add])]} if plan.hangs_in_hook else None,
        session_id=plan.session_id,
        root=plan.root,
        on_own_spans=lambda request: _print(Line(own_spans=request)),
    ) as session:
        _print(Line(whereabouts=session.whereabouts))
        await _next(session, commands)
        if plan.finish:
            await session.finish()
        async for event in session:
            _print(Line(event=p.encode(event).decode()))
            if isinstance(event, p.Result) and commands:
                await _next(session, commands)
            if isinstance(event, p.ApprovalRequest) and plan.approve_as is not None:
                await session.approve(event.data.approval_id, command_id=plan.approve_as)
                _print(Line(done=plan.approve_as))


async def _begin(path: str) -> None:
    await asyncio.to_thread(Path(path).write_text, f"{current_call().idempotency_key}\n")
    await asyncio.Event().wait()


async def add(*_: object) -> None:
    await asyncio.Event().wait()


HOST_TOOLS = (
    host_tool(name="charge", description="Begin to charge a customer.")(_begin),
    host_tool(name="charge_once", description="Begin to charge a customer.")(_begin),
    host_tool(name="look_up", description="Look something up.")(lambda: "found"),
)


async def _next(session: Session, commands: list[tuple[str, str]]) -> None:
    command_id, text = commands.pop(0)
    await session.send(text, command_id=command_id)
    _print(Line(done=command_id))


if __name__ == "__main__":
    asyncio.run(_host(msgspec.json.decode(sys.argv[1], type=Plan)))
