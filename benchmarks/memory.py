"""Measure the memory that a turn of 5,000 tool calls adds to the runner's process.

Each turn runs in a new process. The figure is the maximum of its RSS from the first call, after all imports, to the
turn's end, minus its RSS at the first call. It does not include the imports of OpenTelemetry.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.support.runs import clean_environment

from .support import REPOSITORY, Row, added, interleaved

CALLS = 5000
PAIRS = 3
GOAL_MEBIBYTES = 10


def worker(variant: str, calls: int) -> None:
    """Run one turn in this process; print the growth of its memory in MiB."""
    from . import turn  # only this process needs these imports

    transport = asyncio.run({"bare": turn.bare, "ours": turn.ours}[variant](calls))
    sys.stdout.write(f"{transport.peak_rss - transport.rss_at_start}\n")


def measure() -> list[Row]:
    growth = interleaved(PAIRS, {name: partial(_in_a_process, name) for name in ("bare", "ours")})
    bare, ours = (statistics.median(growth[name]) for name in ("bare", "ours"))
    return [
        Row(
            f"RSS growth over {CALLS:,} calls ({PAIRS} pairs)",
            f"{bare:.1f} MiB",
            f"{ours:.1f} MiB",
            f"{added(growth):+.1f} MiB",
            f"<= {GOAL_MEBIBYTES} MiB",
            added(growth) <= GOAL_MEBIBYTES,
        ),
    ]


def _in_a_process(variant: str) -> float:
    with tempfile.TemporaryDirectory(prefix="bench_") as home:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", variant, str(CALLS)],
            cwd=REPOSITORY,
            env=clean_environment(Path(home)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
