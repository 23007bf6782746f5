"""Two runs in one process do not mix their contexts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner._config import Config
from agent_runner._events import Events
from agent_runner._run import Run
from agent_runner._telemetry import Relay
from agent_runner.contract import protocol
from agent_runner.contract.trace_context import TraceContext
from tests.support.hosts import DEFAULT_CHAT
from tests.support.runs import Lab, read_events, spans_in, tree

SCRIPT = """
model: scripted
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: echo hello}}]
      - text: Done.
"""


class Lines:
    """An output that keeps its lines."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
        self.kept.append(line)


@pytest.mark.anyio
async def test_two_runs_in_one_process_do_not_mix(
    make_lab: Callable[[str], Lab], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab = make_lab(SCRIPT)
    environ = lab.environment()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # the SDK gives its CLI this process's environment

    async def run(n: int) -> tuple[int, list[protocol.AnyEvent]]:
        lines = Lines()
        context = TraceContext(f"{n + 1:032x}", f"{n + 1:016x}")
        events = Events(lines, None, context)
        config = Config(prompt=f"run {n}", cwd=str(lab.cwd), user_id=f"user-{n}")
        this = Run(config, events, Relay({}, events.emit), context, environ)
        this.control.end_of_input()
        return await this.main(), read_events(b"".join(lines.kept))

    outcomes = await asyncio.gather(run(0), run(1))
    for n, (code, events) in enumerate(outcomes):
        relayed = [event.data.otlp for event in events if isinstance(event, protocol.TelemetryEvent)]
        spans = [span for otlp in relayed for span in spans_in(base64.b64decode(otlp))]
        assert code == 0
        assert tree(spans) == [["agent.execute", [DEFAULT_CHAT], ["execute_tool Bash"], [DEFAULT_CHAT]]]
        assert {(span.trace_id, span.attributes["user.id"]) for span in spans} == {(f"{n + 1:032x}", f"user-{n}")}
        assert {event.trace_id for event in events} == {f"{n + 1:032x}"}
