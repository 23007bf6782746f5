"""Run one session of the host in a separate process, which imports only what a host imports."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from agent_runner.contract.protocol import Result, ResultData, ToolUse, event_of
from host_client import open_session
from host_client.telemetry import SessionTrace, Telemetry, Who, root_of, telemetry_of

from .metered import MeteredSandbox

WARM_UP_SECONDS = 2.0


TURN = ResultData(
    turn=1,
    result="",
    is_error=False,
    subtype="success",
    cost_usd=0.01,
    total_cost_usd=0.01,
    duration_ms=1.0,
    duration_api_ms=1.0,
    num_turns=1,
    usage={},
    model_usage={},
    session_id="warm-up",
)


class Run(NamedTuple):
    """The measurements of one run, in milliseconds."""

    wall: float
    per_call: float
    """Mean time of a call, without the slowest tenth of the calls."""
    host: float
    """The host's CPU time until all spans were delivered."""
    runner: float
    """The runner's CPU time."""
    cli: float
    """CPU time of the CLI and its tools."""
    once: float
    """The host's CPU time for the start of its telemetry, a first trace, and its shutdown."""
    end: float
    """Wall time from the session's end to the end of the host's telemetry."""

    @property
    def cpu(self) -> float:
        return self.host + self.runner + self.cli


def main(cpu: Path, calls: int) -> None:
    """Run a session with this number of calls and print a `Run` as JSON; ``cpu`` is the runner's file of CPU times."""
    began = time.process_time()
    telemetry = warmed_up()
    started = time.process_time()
    wall, per_call = asyncio.run(_session(telemetry, MeteredSandbox(cpu), calls))
    closed = time.perf_counter()
    telemetry.flush()
    delivered = time.process_time()
    telemetry.shutdown()
    runner, cli = json.loads(cpu.read_text())
    run = Run(
        wall=wall,
        per_call=per_call,
        host=delivered - started,
        runner=runner,
        cli=cli,
        once=started - began + time.process_time() - delivered,
        end=time.perf_counter() - closed,
    )
    sys.stdout.write(json.dumps([seconds * 1000 for seconds in run]))


def warmed_up() -> Telemetry:
    """Return the environment's telemetry after it has delivered a first trace.

    So imports, connections and new files, which each process needs once, are not measured with the session.
    """
    telemetry = telemetry_of(os.environ)
    trace = SessionTrace(telemetry, {}, root_of(), Who(session_id="warm-up"))
    turn = event_of(TURN, seq=1, ts=time.time(), trace_id=trace.root.trace_id, span_id=trace.root.span_id)
    trace.observe(turn)
    trace.close(None, "")
    telemetry.flush(WARM_UP_SECONDS)
    return telemetry


async def _session(telemetry: Telemetry, sandbox: MeteredSandbox, calls: int) -> tuple[float, float]:
    """Run a session; return its seconds, and the mean seconds from one call to the next."""
    seen: list[float] = []
    last: Result | None = None
    began = time.perf_counter()
    async with open_session("go", sandbox=sandbox, approvals="auto", telemetry=telemetry) as session:
        await session.finish()
        async for event in session:
            if isinstance(event, ToolUse):
                seen.append(time.perf_counter())
            elif isinstance(event, Result):
                last = event
    wall = time.perf_counter() - began
    assert last is not None and not last.data.is_error and len(seen) == calls, f"{len(seen)} calls, {last}"
    each = sorted(later - earlier for earlier, later in pairwise(seen))
    return wall, statistics.fmean(each[: len(each) * 9 // 10])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
