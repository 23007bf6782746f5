"""Measure a run of 200 tool calls on the real CLI with telemetry off, on, and on with an exporter that hangs, in turn.

Each run is a session of the real host in a new process. With telemetry on, the host sends to Langfuse, SigNoz and OTLP,
which are receivers in another process, serves Prometheus, and writes the ledger and the spool. Wall time lasts from the
opening of the session to its end and includes the start of runner and CLI. CPU time is the host's from the opening to
the last delivered span, the runner's, and that of the CLI with its tools. The single costs of a host are measured
separately: imports, first connections and files, caused by a first trace with a turn, and the end with the last
metrics. A run with a hanging exporter is compared with a run whose exporters all answer.

Runs of 15 s vary by 3 %: if a goal lies within the 95 % confidence interval of the median difference, it is undecided.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from .backends import Backends, backends
from .session_worker import Run
from .support import REPOSITORY, Row, added, bench, certain, interleaved

CALLS = 200
TIMES = 10
GOAL_WALL, GOAL_CPU = 1.0, 5.0
"""The goals for wall time and CPU time in per cent."""

LIMIT_SECONDS = 600
EXPORTERS = ("api", "signoz", "otlp")
"""The first part of the path to which each exporter sends."""


def variables(to: Backends, otlp: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTERS": "langfuse,signoz,otlp,prometheus",
        "LANGFUSE_OTLP_ENDPOINT": to.url,
        "LANGFUSE_PUBLIC_KEY": "pk",
        "LANGFUSE_SECRET_KEY": "sk",
        "SIGNOZ_OTLP_ENDPOINT": f"{to.url}/signoz",
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }


def run_session(
    variables: Mapping[str, str],
    to: Backends,
    expected: Sequence[str],
    calls: int = CALLS,
) -> Run:
    """Run one session in a new process; check that all of its spans arrived at the expected receivers only."""
    with tempfile.TemporaryDirectory(prefix="bench_") as state, bench(calls) as run:
        worker = run.command("benchmarks.session_worker", str(Path(state, "cpu")), str(calls))
        done = subprocess.run(
            worker,
            cwd=REPOSITORY,
            env={**run.environ, "XDG_STATE_HOME": state, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    assert done.returncode == 0, done.stderr
    ids = {name: {span.span_id for span in spans} for name, spans in to.taken().items()}
    assert ids.keys() == set(expected), f"spans came to {list(ids)}; {done.stderr}"
    assert all(len(of) > 2 * calls and of == ids[expected[0]] for of in ids.values()), "not every span came everywhere"
    return Run(*json.loads(done.stdout))


def measure() -> list[Row]:
    runs: dict[str, list[Run]] = {"off": [], "on": [], "hanging": []}

    def wall(name: str, variables: Mapping[str, str], to: Backends, *expected: str) -> float:
        runs[name].append(run_session(variables, to, expected))
        return runs[name][-1].wall

    with backends() as to:
        off = {"OTEL_ENABLED": "false"}
        on, hanging = variables(to, f"{to.url}/otlp"), variables(to, f"{to.hanging}/otlp")
        interleaved(
            TIMES,
            {
                "off": partial(wall, "off", off, to),
                "on": partial(wall, "on", on, to, *EXPORTERS),
                "hanging": partial(wall, "hanging", hanging, to, *EXPORTERS[:2]),
            },
        )
    return [*_on(runs["off"], runs["on"]), *_hanging(runs["on"], runs["hanging"])]


def _on(off: list[Run], on: list[Run]) -> list[Row]:
    return [
        _row(f"telemetry: wall time, {CALLS} calls ({TIMES} pairs)", "off", off, on, "wall", GOAL_WALL),
        _row("telemetry: per call without the slowest tenth", "off", off, on, "per_call", GOAL_WALL),
        _row("telemetry: CPU of host, runner and CLI", "off", off, on, "cpu", GOAL_CPU),
        _row("telemetry: of that, the host", "off", off, on, "host"),
        _row("telemetry: of that, the runner", "off", off, on, "runner"),
        _row("telemetry: of that, the CLI and its tools", "off", off, on, "cli"),
        _row("telemetry: CPU of the host's start, first trace and end, once", "off", off, on, "once"),
        _row("telemetry: from the session's end to the host's", "off", off, on, "end"),
    ]


def _hanging(on: list[Run], hanging: list[Run]) -> list[Row]:
    return [
        _row("an exporter hangs: wall time", "on", on, hanging, "wall", GOAL_WALL),
        _row("an exporter hangs: per call without the slowest tenth", "on", on, hanging, "per_call", GOAL_WALL),
        _row("an exporter hangs: CPU of host, runner and CLI", "on", on, hanging, "cpu", GOAL_CPU),
        _row("an exporter hangs: from the session's end to the host's", "on", on, hanging, "end"),
    ]


def _row(what: str, against: str, before: list[Run], after: list[Run], figure: str, goal: float | None = None) -> Row:
    """Return the row that compares a figure of paired runs; with a goal, also in per cent."""
    measured: dict[str, list[float]] = {
        "bare": [getattr(run, figure) for run in before],
        "ours": [getattr(run, figure) for run in after],
    }
    bare, ours = (f"{statistics.median(values):,.1f} ms" for values in measured.values())
    more = f"{added(measured):+,.1f} ms"
    if goal is None:
        return Row(what, f"{bare} ({against})", ours, more)
    percents = [(b / a - 1) * 100 for a, b in zip(*measured.values(), strict=True)]
    middle = statistics.median(percents)
    low, high = certain(percents)
    more = f"{more}, {middle:+.1f} % ({low:.1f} to {high:.1f})"
    holds = None if low < goal <= high else middle < goal
    return Row(what, f"{bare} ({against})", ours, more, f"< {goal:g} %", holds)
