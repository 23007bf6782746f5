"""Measure a tool call on the real CLI against the scripted model, bare SDK and runner in turn: wall and CPU time.

The bare SDK sets no hook, so the runner's added time includes its hook, and that of its gateway. A third variant is the
bare SDK with such a hook that does nothing: this much is the CLI's and the SDK's. CPU time is that of all processes of
a run, with its start. Both processes are timed from outside, from the line of one call to the next. A
call takes far longer than the added time, so there is also the mean without the slowest tenth of each run, in which
other processes may have used the machine. As rare work of the runner may be in that tenth, the goal applies to both.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from .support import REPOSITORY, Bench, Row, bench, interleaved, spread

CALLS = 200
PAIRS = 8
GOAL_MILLISECONDS = 1.5
GOAL_CPU_PERCENT = 6.0

Measured = Mapping[str, Sequence[float]]
"""The values of the variants `bare` and `ours`, in pairs."""


def times(run: Bench, *command: str) -> list[float]:
    """Return the milliseconds from each call to the next in a run, the shortest first."""
    process = subprocess.Popen(
        run.command(*command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=run.environ,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    seen: list[float] = []
    last = b""
    for line in process.stdout:
        if b'"type":"tool_use"' in line[:40]:
            seen.append(time.perf_counter())
        last = line
    _, error = process.communicate(timeout=60)
    how = f"exit code {process.returncode}, {len(seen)} calls, last line {last!r}, stderr {error!r}"
    assert process.returncode == 0 and len(seen) == CALLS, how
    return sorted((later - earlier) * 1000 for earlier, later in pairwise(seen))


def cpu_seconds() -> float:
    """Return the CPU time of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure() -> list[Row]:
    whole: dict[str, list[float]] = {"bare": [], "hook": [], "ours": []}
    cpu: dict[str, list[float]] = {"bare": [], "hook": [], "ours": []}

    def trimmed(run: Bench, name: str, *command: str) -> float:
        before = cpu_seconds()
        taken = times(run, *command)
        cpu[name].append(cpu_seconds() - before)
        whole[name].append(statistics.fmean(taken))
        return statistics.fmean(taken[: len(taken) * 9 // 10])

    with bench(CALLS) as run:
        measured = interleaved(
            PAIRS,
            {
                "bare": lambda: trimmed(run, "bare", "benchmarks.bare_sdk"),
                "hook": lambda: trimmed(run, "hook", "benchmarks.bare_sdk", "hook"),
                "ours": lambda: trimmed(run, "ours", "agent_runner", "run"),
            },
        )
    hook_times, hook_cpu = ({"bare": each["bare"], "ours": each["hook"]} for each in (whole, cpu))
    return [
        _call_row(f"real CLI, per call ({PAIRS} pairs of {CALLS} calls)", whole, GOAL_MILLISECONDS),
        _call_row("the same without the slowest tenth", measured, GOAL_MILLISECONDS),
        _call_row("per call, the bare SDK with an empty hook in place of Sandspan", hook_times),
        _cpu_row("CPU of all processes of such a run", cpu, GOAL_CPU_PERCENT),
        _cpu_row("CPU, the bare SDK with an empty hook in place of Sandspan", hook_cpu),
    ]


def _call_row(what: str, measured: Measured, goal: float | None = None) -> Row:
    return _row(what, measured, "ms", [b - a for a, b in _pairs(measured)], "+.2f", "ms", goal)


def _cpu_row(what: str, measured: Measured, goal: float | None = None) -> Row:
    return _row(what, measured, "s", [100 * (b / a - 1) for a, b in _pairs(measured)], "+.1f", "%", goal)


def _pairs(measured: Measured) -> list[tuple[float, float]]:
    return list(zip(measured["bare"], measured["ours"], strict=True))


def _row(
    what: str, measured: Measured, unit: str, differences: list[float], form: str, unit_of_more: str, goal: float | None
) -> Row:
    """Return a row with the median of the differences within pairs, and the verdict if there is a goal."""
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    more = statistics.median(differences)
    row = Row(what, f"{bare:.1f} {unit}", f"{ours:.1f} {unit}", f"{more:{form}} {unit_of_more} ({spread(differences)})")
    return row if goal is None else replace(row, goal=f"< {goal:g} {unit_of_more}", holds=more < goal)
