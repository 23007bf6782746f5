"""Shared parts of the benchmarks: alternating repetitions, a scripted model, statistics and tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from math import comb
from pathlib import Path

from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.runs import clean_environment

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """A row of the table; ``holds`` is None without a goal, and if the figures do not decide whether it is met."""

    what: str
    bare: str
    ours: str
    added: str
    goal: str = ""
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        if not self.goal:
            return ""
        return f"{self.goal}: {'not decided' if self.holds is None else 'holds' if self.holds else 'MISSED'}"

    def cells(self) -> tuple[str, ...]:
        return (self.what, self.bare, self.ours, self.added, self.verdict)


HEADER = ("", "bare SDK", "Sandspan", "added", "goal")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned Markdown table, which is also readable in a terminal."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def machine() -> str:
    """Return the number of cores, memory, speed, and the versions of Python and the Claude Agent SDK as text."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"{platform.python_implementation()} {platform.python_version()}"
    sdk = version("claude-agent-sdk")
    speed = f"a million additions in {_million_additions() * 1000:.0f} ms"
    return f"{os.cpu_count()} cores, {gibibytes:.0f} GiB, {python}, {speed}, Claude Agent SDK {sdk}"


def _million_additions() -> float:
    """Return the minimum seconds of a million additions, by which the speed of machines can be compared."""

    def once() -> float:
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        return time.perf_counter() - began

    return min(once() for _ in range(5))


def interleaved(times: int, variants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure all variants in turn, so that other load affects all alike; every second round in reverse order."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(times):
        for name in list(variants) if n % 2 == 0 else reversed(list(variants)):
            measured[name].append(variants[name]())
        progress(".")
    progress("\n")
    return measured


def added(measured: Mapping[str, Sequence[float]], ours: str = "ours", bare: str = "bare") -> float:
    """Return the median difference within pairs, which a slow change of the machine's speed does not affect."""
    return statistics.median(b - a for a, b in zip(measured[bare], measured[ours], strict=True))


def spread(values: Sequence[float]) -> str:
    """Return the first and third quartile of some values as text."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.1f} to {high:.1f}"


def certain(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the median of six or more values.

    It uses only the order of the values (a sign test), so it assumes no distribution.
    """
    ordered, n = sorted(values), len(values)
    outside = accumulate(2 * comb(n, rank) / 2**n for rank in range(n))
    beyond = sum(chance <= 1 - confidence for chance in outside)
    assert beyond, "too few values"
    return ordered[beyond - 1], ordered[n - beyond]


def progress(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


@dataclass(frozen=True)
class Bench:
    """The working directory and environment of a process that uses a scripted model."""

    cwd: Path
    environ: dict[str, str]

    def command(self, module: str, *args: str) -> list[str]:
        return [sys.executable, "-m", module, *args]


CHEAPEST = {"name": "Bash", "input": {"command": "true"}}


@contextmanager
def bench(calls: int, tool: Mapping[str, object] = CHEAPEST) -> Generator[Bench]:
    """Serve a scripted conversation with this number of calls of a tool, one per reply."""
    call = {"tools": [tool]}
    script = {"conversations": {"main": {"replies": [*([call] * calls), {"text": "Done."}]}}}
    with tempfile.TemporaryDirectory(prefix="bench_") as root, ScriptedModel(parse_script(json.dumps(script))) as model:
        home, cwd = Path(root, "home"), Path(root, "work")
        home.mkdir()
        cwd.mkdir()
        yield Bench(cwd, clean_environment(home, model.url, AGENT_CWD=str(cwd), AGENT_PROMPT="go"))
        assert model.unexpected == []
