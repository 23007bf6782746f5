"""Measure a tool call of the runner on the real CLI with and without AGENT_DEEP_TRACE, in turn.

The times are those of `benchmarks.real_cli`. Of a run with it the CPU time includes that of the CLI's own telemetry.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .real_cli import CALLS, cpu_seconds, times
from .support import Bench, Row, added, bench, interleaved, spread

PAIRS = 10
GOAL_MILLISECONDS = 0.5


def measure() -> list[Row]:
    cpu: dict[str, list[float]] = {"off": [], "on": []}

    def median(run: Bench, switch: str) -> float:
        before = cpu_seconds()
        taken = times(run, "agent_runner", "run", "--deep-trace", switch)
        cpu[switch].append(cpu_seconds() - before)
        return statistics.median(taken)

    with bench(CALLS) as run:
        measured = interleaved(PAIRS, {"off": lambda: median(run, "off"), "on": lambda: median(run, "on")})
    more = added(measured, "on", "off")
    return [
        Row(
            f"deep trace, median call ({PAIRS} pairs of {CALLS} calls)",
            *_cells(measured, "ms"),
            f"{more:+.2f} ms ({spread(_differences(measured))})",
            f"<= {GOAL_MILLISECONDS:g} ms",
            more <= GOAL_MILLISECONDS,
        ),
        Row(
            "CPU of all processes of such a run",
            *_cells(cpu, "s"),
            f"{added(cpu, 'on', 'off'):+.2f} s ({spread(_differences(cpu))})",
        ),
    ]


def _cells(measured: Mapping[str, Sequence[float]], unit: str) -> tuple[str, str]:
    off, on = (statistics.median(measured[name]) for name in ("off", "on"))
    return f"{off:.1f} {unit} off", f"{on:.1f} {unit} on"


def _differences(measured: Mapping[str, Sequence[float]]) -> list[float]:
    return [on - off for off, on in zip(measured["off"], measured["on"], strict=True)]
