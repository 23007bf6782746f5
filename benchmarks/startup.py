"""Measure the time from exec to the `start` event of `agent_runner run`, and to a bare SDK script's first message."""

from __future__ import annotations

import statistics
import subprocess
import time

from .support import REPOSITORY, Bench, Row, added, bench, interleaved

PAIRS = 25
GOAL = 1.05


def first_event(run: Bench, *command: str) -> float:
    """Run a process to its end; return the milliseconds from its start to its first `start` event."""
    began = time.perf_counter()
    process = subprocess.Popen(
        run.command(*command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=run.environ,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    took = None
    for line in process.stdout:
        if took is None and b'"type":"start"' in line:
            took = (time.perf_counter() - began) * 1000
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and took is not None, error.decode("utf-8", "replace")
    return took


def measure(pairs: int = PAIRS) -> list[Row]:
    with bench(0) as run:
        variants = {
            "bare": lambda: first_event(run, "benchmarks.bare_sdk"),
            "ours": lambda: first_event(run, "agent_runner", "run"),
        }
        interleaved(1, variants)  # compiles modules and fills the file cache
        measured = interleaved(pairs, variants)
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    # Ratios within pairs, as other load affects both runs of a pair alike.
    ratio = statistics.median(b / a for a, b in zip(measured["bare"], measured["ours"], strict=True))
    return [
        Row(
            f"exec to first event ({pairs} pairs)",
            f"{bare:,.0f} ms",
            f"{ours:,.0f} ms",
            f"{added(measured):+,.0f} ms ({ratio:.3f}x)",
            f"<= {GOAL}x",
            ratio <= GOAL,
        )
    ]
