"""Run a hundred agents at once with the real CLI, in one host with telemetry, and check that every trace is complete.

Each agent requests an approval, which is given when all agents have requested one. If memory is short, fewer agents
run at the same time. They start a few at a time, as the start of a CLI takes about a second of CPU time. Each trace
must have the same tree as that of an agent that ran alone before. The host's figures are those of its process beyond
that agent's, per session, and include the local sandboxes (child processes, directories).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from agent_runner.contract.protocol import ApprovalRequest
from host_client import AgentOptions, run_agent
from host_client.scripted_model import ScriptedModel, parse_script
from host_client.telemetry import Telemetry
from tests.support.runs import SpanView, children, clean_environment, tree

from .backends import backends
from .replay import memory, memory_from_here
from .session_worker import warmed_up
from .support import REPOSITORY, Row, progress
from .telemetry import EXPORTERS, variables

AGENTS = 100
STARTING = 4
MEBIBYTES_LEFT = 1024
"""MiB of the machine's memory that must remain free."""

LIMIT_SECONDS = 900.0
SCRIPT: dict[str, Any] = {
    "conversations": {
        "main": {
            "replies": [
                {"tools": [{"name": "Bash", "input": {"command": "true"}}]},
                {"tools": [{"name": "Bash", "input": {"command": "touch made"}}]},
                {"tools": [{"name": "Bash", "input": {"command": "true"}}]},
                {"text": "Done."},
            ]
        }
    }
}


class Figures(NamedTuple):
    """The measurements of the host's process: seconds and MiB of all agents together, except ``agent``."""

    failures: list[str]
    at_once: int
    wall: float
    cpu: float
    grown: float
    agent: float
    """MiB of private memory of one runner and its CLI."""
    lost: dict[str, dict[str, int]]


class Crowd:
    """Agents that wait for each other: no approval is given before this number of agents has requested one."""

    def __init__(self, size: int) -> None:
        self.at_once = 0
        self._waiting = 0
        self._missing = size
        self._room = asyncio.Semaphore(size)
        self._all_here = asyncio.Event()
        self._starting = asyncio.Semaphore(STARTING)
        self.agent_mebibytes = 0.0

    async def run(self, telemetry: Telemetry) -> str | None:
        """Run one agent; return its error, if any."""
        options = AgentOptions(user_id="ada", tenant_id="acme", user_tier="pro", approval_timeout=LIMIT_SECONDS)
        started = False

        def start() -> None:
            nonlocal started
            if not started:
                started = True
                self._starting.release()
                self._missing -= 1
                if self._missing <= 0:
                    self._all_here.set()

        async def approve(_: ApprovalRequest) -> bool:
            self._waiting += 1
            self.at_once = max(self.at_once, self._waiting)
            self.agent_mebibytes = self.agent_mebibytes or await asyncio.to_thread(_private_of_descendants)
            start()
            await self._all_here.wait()
            self._waiting -= 1
            return True

        async with self._room:
            await self._starting.acquire()
            try:
                result = await run_agent("go", options, approvals=approve, telemetry=telemetry)
            finally:
                start()
        return result.error_message or result.error_type if result.is_error else None


def _private_of_descendants() -> float:
    """Return the private memory of this process's descendants in MiB, without file pages, which can be shared."""
    pids, found = children(os.getpid()), 0
    while pids:
        pid = pids.pop()
        pids += children(pid)
        with contextlib.suppress(OSError):  # the process has just ended, or only root may look at it
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
            found += sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
    return found / 1024


def _available() -> float:
    lines = Path("/proc/meminfo").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024


def worker(agents: int) -> None:
    """Run one agent, then the given number at the same time; print `Figures` as JSON."""
    telemetry = warmed_up()
    figures = asyncio.run(_crowds(telemetry, agents))
    sys.stdout.write(json.dumps(figures))


async def _crowds(telemetry: Telemetry, agents: int) -> Figures:
    async with asyncio.timeout(LIMIT_SECONDS):
        alone = Crowd(1)
        failure = await alone.run(telemetry)
        assert failure is None, failure
        crowd = Crowd(min(agents, int((_available() - MEBIBYTES_LEFT) / alone.agent_mebibytes)))
        crowd.agent_mebibytes = alone.agent_mebibytes  # measured already, so that no agent measures again
        before, cpu, began = memory_from_here(), time.process_time(), time.perf_counter()
        outcomes = await asyncio.gather(*(crowd.run(telemetry) for _ in range(agents)))
    wall = time.perf_counter() - began
    telemetry.shutdown(60.0)
    return Figures(
        failures=[outcome for outcome in outcomes if outcome is not None],
        at_once=crowd.at_once,
        wall=wall,
        cpu=time.process_time() - cpu,
        grown=memory("VmHWM") - before,
        agent=alone.agent_mebibytes,
        lost={name: {k: n for k, n in of.items() if k != "exported" and n} for name, of in telemetry.counts().items()},
    )


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench_") as home,
        ScriptedModel(parse_script(json.dumps(SCRIPT))) as model,
        backends() as to,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.many_agents", str(AGENTS)],
            cwd=REPOSITORY,
            env=clean_environment(Path(home), model.url, **variables(to, f"{to.url}/otlp")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert model.unexpected == []
        taken = to.taken()
    progress("\n")
    figures = Figures(*json.loads(done.stdout))
    whole = {name: _whole(taken.get(name, [])) for name in EXPORTERS}
    return _rows(figures, whole)


def _whole(spans: list[SpanView]) -> int:
    """Return the number of traces with the same tree as the first agent's, without that one and the warm-up."""
    traces: defaultdict[str, list[SpanView]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    trees = [tree(of) for of in traces.values() if len(of) > 1]
    first = min((of for of in traces.values() if len(of) > 1), key=lambda of: min(span.start for span in of))
    return trees.count(tree(first)) - 1


def _rows(figures: Figures, whole: dict[str, int]) -> list[Row]:
    succeeded = AGENTS - len(figures.failures)
    found = ", ".join(sorted(set(figures.failures)))[:200]
    what = f"{AGENTS} agents"
    return [
        Row(f"{what}: there at once", "", str(figures.at_once), "", f"{AGENTS}", figures.at_once == AGENTS),
        Row(f"{what}: succeeded, in {figures.wall:.0f} s", "", str(succeeded), found, f"{AGENTS}", succeeded == AGENTS),
        Row(
            f"{what}: whole traces at each of {len(whole)} exporters",
            "",
            str(min(whole.values())),
            json.dumps({name: of for name, of in figures.lost.items() if of}) if any(figures.lost.values()) else "",
            f"{AGENTS}",
            min(whole.values()) == AGENTS,
        ),
        Row(f"{what}: host's memory, a session", "", f"{figures.grown / AGENTS:.2f} MiB", ""),
        Row(f"{what}: host's CPU, a session", "", f"{figures.cpu / AGENTS * 1000:.0f} ms", ""),
        Row(f"{what}: memory of one's runner and CLI", "", f"{figures.agent:.0f} MiB", ""),
    ]


if __name__ == "__main__":
    worker(int(sys.argv[1]))
