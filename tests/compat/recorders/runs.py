"""Records runs: the real host leads the real runner through each scenario, and all that passes between them is kept."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from host_client import AgentOptions, LocalSandbox, Whereabouts, open_session
from host_client import events as p
from host_client.sandbox import Exit, Process, Sandbox, SandboxInfo
from host_client.telemetry import root_of
from tests.compat.files import PLAYED, RUNS, write_json, write_lines
from tests.compat.playing import play_all, play_alone
from tests.compat.recordings import load
from tests.compat.scenarios import SCENARIOS, Scenario
from tests.support.hosts import host_lab


class RecordingSandbox:
    """A `Sandbox` that notes what its host asks of another one, and what that says."""

    def __init__(self, inner: Sandbox) -> None:
        self.steps: list[tuple[str, str]] = []
        self.metadata: dict[str, str] = {}
        self.arguments: tuple[str, ...] = ()
        self.environment: dict[str, str] = {}
        self.info: SandboxInfo | None = None
        self.exit_code: int | None = None
        self._inner = inner
        self.upload, self.download, self.read_file = inner.upload, inner.download, inner.read_file
        self.adopt, self.leave, self.close = inner.adopt, inner.leave, inner.close

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        self.metadata = dict(metadata)
        self.info = await self._inner.create(metadata)
        return self.info

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> Process:
        process = await self._inner.run(args, env)
        if args[0] != "run":  # a runner that died is looked for in its journal
            return process
        self.arguments, self.environment = args, dict(env)
        return RecordingProcess(self, process)


class RecordingProcess:
    """A process whose lines and commands are noted in their order."""

    def __init__(self, sandbox: RecordingSandbox, inner: Process) -> None:
        self._sandbox, self._inner = sandbox, inner
        self._left = b""
        self.id = inner.id
        self.close_input, self.terminate, self.kill = inner.close_input, inner.terminate, inner.kill

    async def output(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner.output():
            *lines, self._left = (self._left + chunk).split(b"\n")
            for line in lines:
                self._sandbox.steps.append(("out", line.decode()))
                yield line + b"\n"

    async def write(self, data: bytes) -> None:
        self._sandbox.steps += [("in", line.decode()) for line in data.splitlines()]
        await self._inner.write(data)

    async def wait(self) -> Exit:
        ended = await self._inner.wait()
        self._sandbox.exit_code = ended.code
        return ended


def record() -> None:
    """Write every run, and beside them what a host makes of each."""
    for name, scenario in SCENARIOS.items():
        with host_lab(scenario.script) as lab:
            about, steps = asyncio.run(_run(scenario, lab.environ))
        _check(name, steps)
        write_lines(f"{RUNS}/{name}.jsonl.gz", [about, *steps])
    kinds = {event["type"] for name in SCENARIOS for event in load(name).events}
    assert kinds == {*p.EVENT_TYPES}, {*p.EVENT_TYPES} - kinds
    once, again = _played(), _played()
    assert once == again, "what is compared differs from one play to the next"
    write_json(PLAYED, once)


def _played() -> dict[str, Any]:
    """Return what the host makes of all runs: as they were, and where another host takes them over."""
    recordings = [load(name) for name in sorted(SCENARIOS)]
    handed_over = {each.name: play_alone(each, seen=each.handed_over_at) for each in recordings}
    played = json.loads(json.dumps({**play_all(recordings), "handed_over": handed_over}))
    for each in (*played["runs"].values(), *played["handed_over"].values()):
        for name in ("events", "commands", "environment", "metadata"):
            del each[name]  # which the recording tells
    return played


async def _run(scenario: Scenario, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    sandbox, root = RecordingSandbox(LocalSandbox()), root_of()
    whereabouts: Whereabouts | None = None
    options = msgspec.convert(scenario.given, AgentOptions)
    async with open_session("go", options, sandbox=sandbox, environ=environ, root=root) as session:
        async for event in session:
            whereabouts = session.whereabouts or whereabouts
            await scenario.react(session, event)
        assert sandbox.info is not None
        journal = await asyncio.to_thread(Path(sandbox.info.journal).read_text)
    assert whereabouts is not None
    numbered = [line for kind, line in sandbox.steps if kind == "out" and "seq" in json.loads(line)]
    assert journal == "".join(f"{line}\n" for line in numbered), "the journal is the stream's numbered lines"
    about: dict[str, Any] = {
        "prompt": "go",
        "options": scenario.given,
        "session_id": session.id,
        "root": msgspec.to_builtins(root),
        "metadata": sandbox.metadata,
        "arguments": sandbox.arguments,
        "environment": {**sandbox.environment, "ANTHROPIC_BASE_URL": "http://model.example"},
        "whereabouts": msgspec.to_builtins(whereabouts),
        "exit_code": session.exit_code,
    }
    text = json.dumps([about, sandbox.steps], ensure_ascii=False)
    folder = str(Path(sandbox.info.journal).parent)
    for here, there in ((sandbox.info.work, "/home/user/work"), (folder, "/var/lib/sandspan")):
        text = text.replace(here, there)
    text = re.sub(
        r"/tmp/claude-\d+/[^/]+/", "/var/tmp/claude/", text
    )  # where the CLI keeps what works in the background
    return tuple(json.loads(text))


def _check(name: str, steps: list[tuple[str, str]]) -> None:
    """Check that a recording is what it should be: numbered without a hole."""
    events = [json.loads(line) for kind, line in steps if kind == "out"]
    seqs = [event["seq"] for event in events if "seq" in event]
    assert seqs == list(range(1, len(seqs) + 1)), name
