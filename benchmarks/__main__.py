"""The command `python -m benchmarks`: run all benchmarks, or the named ones, and print a table of each.

With `--record` it also writes the tables into README.md.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import (
    deep_trace,
    gateway,
    host_events,
    host_tools,
    many_agents,
    memory,
    per_call,
    real_cli,
    relay,
    startup,
    telemetry,
)
from .streaming import measure as streaming
from .support import Row, machine, progress, table

README = Path(__file__).with_name("README.md")

BENCHMARKS = {
    "startup": startup.measure,
    "per_call": per_call.measure,
    "memory": memory.measure,
    "real_cli": real_cli.measure,
    "deep_trace": deep_trace.measure,
    "host_events": host_events.measure,
    "host_tools": host_tools.measure,
    "gateway": gateway.measure,
    "relay": relay.measure,
    "telemetry": telemetry.measure,
    "many_agents": many_agents.measure,
    "streaming": streaming.measure,
}


def main(args: list[str]) -> int:
    if {"-h", "--help"} & set(args):
        sys.stdout.write(f"{__doc__}\n{' '.join(BENCHMARKS)}\n")
        return 0
    names = [arg for arg in args if arg != "--record"] or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        progress(f"no benchmark named {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}\n")
        return 2
    for name in names:
        progress(f"{name} ")
        report = measured(BENCHMARKS[name])
        sys.stdout.write(f"{report}\n")
        sys.stdout.flush()
        if "--record" in args:
            README.write_text(recorded(README.read_text(), name, report))
    return 0


def measured(measure: Callable[[], list[Row]]) -> str:
    """Run a benchmark; return its table and the machine's properties."""
    began, before = time.monotonic(), os.getloadavg()[0]
    rows = measure()
    minutes, after = (time.monotonic() - began) / 60, os.getloadavg()[0]
    # The benchmarks cause a load of about 1; anything above it came from other processes.
    load = f"load {before:.2f} before and {after:.2f} at the end"
    return f"{machine()}; {minutes:.1f} minutes, {load}.\n\n{table(rows)}\n"


def recorded(text: str, name: str, report: str) -> str:
    """Return the text with a benchmark's report between its two markers."""
    before, found, rest = text.partition(begin(name))
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"no place for the figures of {name}")
    return f"{before}{found}\n{report}\n{ended}{after}"


def begin(name: str) -> str:
    return f"<!-- figures of {name} -->\n"


END = "<!-- end of figures -->\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
