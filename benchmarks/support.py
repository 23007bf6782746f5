"""What the benchmarks share: interleaved repetitions, a scripted model to run against, rows of a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.runs import clean_environment

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``holds`` is None where there is no goal."""

    what: str
    bare: str
    ours: str
    added: str
    goal: str = ""
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.holds is None else f"{self.goal}: {'holds' if self.holds else 'MISSED'}"

    def cells(self) -> tuple[str, ...]:
        return (self.what, self.bare, self.ours, self.added, self.verdict)


HEADER = ("", "bare SDK", "Sandspan", "added", "goal")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table that also reads well in a terminal."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def machine() -> str:
    """Say what the figures were measured on."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"{platform.python_implementation()} {platform.python_version()}"
    sdk = version("claude-agent-sdk")
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {gibibytes:.0f} GiB, {python}, Claude Agent SDK {sdk}, load {load:.2f} at the start"
    )


def interleaved(times: int, variants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure all variants in turn, so that a busy machine is equally busy for each; every other time backwards."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(times):
        for name in list(variants) if n % 2 == 0 else reversed(list(variants)):
            measured[name].append(variants[name]())
        progress(".")
    progress("\n")
    return measured


def added(measured: Mapping[str, Sequence[float]], ours: str = "ours", bare: str = "bare") -> float:
    """Return the median difference within pairs, which a slow drift of the machine does not move."""
    return statistics.median(b - a for a, b in zip(measured[bare], measured[ours], strict=True))


def spread(values: Sequence[float]) -> str:
    """Return the middle half of some values."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.1f} to {high:.1f}"


def progress(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


@dataclass(frozen=True)
class Bench:
    """A scripted model and what a process that talks to it gets."""

    cwd: Path
    environ: dict[str, str]

    def command(self, module: str, *args: str) -> list[str]:
        return [sys.executable, "-m", module, *args]


@contextmanager
def bench(tools: int) -> Generator[Bench]:
    """Serve a conversation of so many calls of Bash, one a reply, each the cheapest there is."""
    call = {"tools": [{"name": "Bash", "input": {"command": "true"}}]}
    script = {"conversations": {"main": {"replies": [*([call] * tools), {"text": "Done."}]}}}
    with tempfile.TemporaryDirectory(prefix="bench_") as root, ScriptedModel(parse_script(json.dumps(script))) as model:
        home, cwd = Path(root, "home"), Path(root, "work")
        home.mkdir()
        cwd.mkdir()
        yield Bench(cwd, clean_environment(home, model.url, AGENT_CWD=str(cwd), AGENT_PROMPT="go"))
        assert model.unexpected == []
