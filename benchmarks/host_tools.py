"""Measure a call of a host's tool and of a host's hook on the real CLI, in a local sandbox.

The tool is compared with the same one of an in-process MCP server of the bare SDK, and with that server in the runner's
process: the difference to this one is the way to the host and back. The times are those of `benchmarks.real_cli`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from .real_cli import CALLS, times
from .support import Bench, Row, added, bench, interleaved, spread

PAIRS = 8
GOAL_MILLISECONDS = 5.0

ECHO = {"name": "mcp__host__echo", "input": {"text": "a"}}
IN_RUNNER = ("run", "--mcp-servers", "host=benchmarks.host_functions:server", "--allowed-tools", "mcp__host")


def measure() -> list[Row]:
    with bench(CALLS, ECHO) as run:
        tools = interleaved(
            PAIRS,
            {
                "bare": _median(run, "benchmarks.host_functions", "bare"),
                "runner": _median(run, "agent_runner", *IN_RUNNER),
                "host": _median(run, "benchmarks.host_functions", "tool"),
            },
        )
    with bench(CALLS) as run:
        hooks = interleaved(
            PAIRS, {name: _median(run, "benchmarks.host_functions", name) for name in ("no_hook", "hook")}
        )
    return [
        _row(f"a host's tool, median call ({PAIRS} pairs of {CALLS} calls)", tools, "bare", "host", GOAL_MILLISECONDS),
        _row("of it, to the host and back", tools, "runner", "host"),
        _row("a host's PreToolUse hook, median call of Bash", hooks, "no_hook", "hook"),
    ]


def _median(run: Bench, *command: str) -> Callable[[], float]:
    return lambda: statistics.median(times(run, *command))


def _row(what: str, measured: Mapping[str, Sequence[float]], before: str, after: str, goal: float | None = None) -> Row:
    more = added(measured, after, before)
    differences = [b - a for a, b in zip(measured[before], measured[after], strict=True)]
    return Row(
        what,
        f"{statistics.median(measured[before]):.1f} ms ({before.replace('_', ' ')})",
        f"{statistics.median(measured[after]):.1f} ms",
        f"{more:+.2f} ms ({spread(differences)})",
        f"<= {goal:g} ms" if goal is not None else "",
        more <= goal if goal is not None else None,
    )
