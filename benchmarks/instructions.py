"""What telemetry adds to a run of 200 tool calls on the real CLI, in instructions of host and runner.

Seconds of a machine that others use vary by more than what is looked for. Instructions, which valgrind counts, hardly
do: the same work is the same number. On a busy machine a run takes longer and hands its spans over more often, which is
more work: measure on a quiet one. They are no seconds: one that waits for memory counts as much as any other, and what
the kernel does is not in them.

Wall time varies in the same way, by more than the goal. What telemetry adds to it is at most all of its work, as if the
agent waited for each instruction of it: so many times what an instruction takes in a run without it. It is less, as
most of that work is done while the CLI is at work; what it would wait for (receivers, the disk) is waited for by other
threads, and no instruction.

The runs are those of `telemetry`: the whole runner, and the host from opening the session to the last delivered span,
without what it pays once. That is told by a run of few calls: what a run of many has more is by the calls.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .backends import Backends, backends
from .session_worker import Run
from .support import Row, progress
from .telemetry import CALLS, EXPORTERS, GOAL_CPU, GOAL_WALL, run_session, variables

FEW = 10
TIMES = 3
"""How often the runner is run, and the session without valgrind, of which the median counts."""

VALGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def measure() -> list[Row]:
    if shutil.which("valgrind") is None:
        return [Row("valgrind is missing: nothing was counted", "", "", "")]
    with backends() as to:
        off, on = {"OTEL_ENABLED": "false"}, variables(to, f"{to.url}/otlp")
        _count("host", FEW, on, to, *EXPORTERS)  # what is compiled once is compiled now
        plain = [run_session(off, to, ()) for _ in range(TIMES)]
        without = _host(off, to), _runner(off, to)
        with_it = _host(on, to, *EXPORTERS), _runner(on, to, *EXPORTERS)
        hanging = _host(variables(to, f"{to.hanging}/otlp"), to, *EXPORTERS[:2])
    return [
        _row("instructions of host and runner", sum(without), sum(with_it), GOAL_CPU),
        _row("of that, the host", without[0], with_it[0]),
        _row("of that, the runner", without[1], with_it[1]),
        _in_a_row("all of that in a row, as wall time", plain, sum(without), sum(with_it)),
        _row("an exporter hangs: the host", with_it[0], hanging, GOAL_CPU, "on"),
    ]


def _host(variables: Mapping[str, str], to: Backends, *expected: str) -> int:
    """Return what the calls of a run take on the host."""
    few, many = (_count("host", calls, variables, to, *expected) for calls in (FEW, CALLS))
    return (many - few) * CALLS // (CALLS - FEW)


def _runner(variables: Mapping[str, str], to: Backends, *expected: str) -> int:
    """Return what a run takes in the runner, which waits for the CLI now more and now less often."""
    return statistics.median_low(_count("runner", CALLS, variables, to, *expected) for _ in range(TIMES))


def _count(whose: str, calls: int, variables: Mapping[str, str], to: Backends, *expected: str) -> int:
    """Make one run, the process of one side under valgrind; return the instructions of that side."""
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        log = Path(folder, "log")
        counting = (*VALGRIND, f"--log-file={log}")
        if whose == "host":
            run_session(variables, to, expected, calls, host_under=counting)
        else:
            run_session(variables, to, expected, calls, runner_under=counting)
        progress(".")
        return _told(log.read_text())


def _told(log: str) -> int:
    """Return what valgrind counted: ``I refs: 1,234``."""
    (line,) = (line for line in log.splitlines() if "I   refs" in line)
    return int(line.rpartition(":")[2].replace(",", ""))


def _in_a_row(what: str, plain: Sequence[Run], bare: int, ours: int) -> Row:
    """Return what wall time would be if nothing of what is added was done beside something else."""
    wall, cpu = (statistics.median(values) for values in ([run.wall for run in plain], [run.cpu for run in plain]))
    more = (ours - bare) * cpu / bare
    percent = more / wall * 100
    cells = f"{what}, {CALLS} calls", f"{wall:,.0f} ms (off)", f"{wall + more:,.0f} ms"
    return Row(*cells, f"{more:+,.0f} ms, {percent:+.1f} %", f"< {GOAL_WALL:g} %", percent < GOAL_WALL)


def _row(what: str, bare: int, ours: int, goal: float | None = None, against: str = "off") -> Row:
    more = f"{(ours - bare) / 1e6:+,.0f} million"
    cells = f"{what}, {CALLS} calls", f"{bare / 1e6:,.0f} million ({against})", f"{ours / 1e6:,.0f} million"
    if goal is None:
        return Row(*cells, more)
    percent = (ours / bare - 1) * 100
    return Row(*cells, f"{more}, {percent:+.1f} %", f"< {goal:g} %", percent < goal)
