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
from dataclasses import replace
from itertools import pairwise

from .support import REPOSITORY, Bench, Row, added, bench, interleaved, spread

CALLS = 200
PAIRS = 8
GOAL_MILLISECONDS = 1.5
GOAL_CPU_PERCENT = 6.0


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
        _call_row(f"real CLI, per call ({PAIRS} pairs of {CALLS} calls)", whole),
        _call_row("the same without the slowest tenth", measured),
        _call_row("per call, the bare SDK with an empty hook in place of Sandspan", hook_times, has_goal=False),
        _cpu_row("CPU of all processes of such a run", cpu),
        _cpu_row("CPU, the bare SDK with an empty hook in place of Sandspan", hook_cpu, has_goal=False),
    ]


def _cpu_row(what: str, measured: dict[str, list[float]], *, has_goal: bool = True) -> Row:
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    percent = [100 * (b / a - 1) for a, b in zip(measured["bare"], measured["ours"], strict=True)]
    more = statistics.median(percent)
    row = Row(what, f"{bare:.1f} s", f"{ours:.1f} s", f"{more:+.1f} % ({spread(percent)})")
    if not has_goal:
        return row
    return replace(row, goal=f"< {GOAL_CPU_PERCENT:g} %", holds=more < GOAL_CPU_PERCENT)


def _call_row(what: str, measured: dict[str, list[float]], *, has_goal: bool = True) -> Row:
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    more = added(measured)
    differences = [b - a for a, b in zip(measured["bare"], measured["ours"], strict=True)]
    row = Row(what, f"{bare:.1f} ms", f"{ours:.1f} ms", f"{more:+.2f} ms ({spread(differences)})")
    if not has_goal:
        return row
    return replace(row, goal=f"< {GOAL_MILLISECONDS:g} ms", holds=more < GOAL_MILLISECONDS)
