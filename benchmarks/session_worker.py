"""One session of the host in a process of its own; imports only what a host imports."""

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
    """Mean of the calls without the slowest tenth."""
    host: float
    """CPU time, with all spans delivered."""
    runner: float
    """CPU time."""
    cli: float
    """CPU time, that of its tools included."""
    once: float
    """The host's CPU time to have its telemetry and one trace sent, and to end it."""
    end: float
    """Wall time from the session's end to the host's."""

    @property
    def cpu(self) -> float:
        return self.host + self.runner + self.cli


def main(cpu: Path, calls: int) -> None:
    """Run a session of this number of calls; print a `Run` as JSON. The runner writes CPU times to ``cpu``."""
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
    """Return the environment's telemetry after a first trace with a turn.

    Imports, connections and files are needed once per process.
    """
    telemetry = telemetry_of(os.environ)
    trace = SessionTrace(telemetry, {}, root_of(), Who(session_id="warm-up"))
    turn = event_of(TURN, seq=1, ts=time.time(), trace_id=trace.root.trace_id, span_id=trace.root.span_id)
    trace.observe(turn)
    trace.close(None, "")
    telemetry.flush(WARM_UP_SECONDS)
    return telemetry


async def _session(telemetry: Telemetry, sandbox: MeteredSandbox, calls: int) -> tuple[float, float]:
    """Return the session's seconds, and the mean seconds from one call to the next."""
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
