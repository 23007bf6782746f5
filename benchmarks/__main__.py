"""`python -m benchmarks`: run them all and print one table; with `--record` also write it into README.md.

With names (`python -m benchmarks startup per_call`) only those.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from . import gateway, host_events, many_agents, memory, per_call, real_cli, relay, startup, telemetry
from .support import Row, machine, progress, table

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"

BENCHMARKS = {
    "startup": startup.measure,
    "per_call": per_call.measure,
    "memory": memory.measure,
    "real_cli": real_cli.measure,
    "host_events": host_events.measure,
    "gateway": gateway.measure,
    "relay": relay.measure,
    "telemetry": telemetry.measure,
    "many_agents": many_agents.measure,
}


def main(args: list[str]) -> int:
    began = time.monotonic()
    names = [arg for arg in args if arg != "--record"] or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        progress(f"no benchmark named {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}\n")
        return 2
    before = os.getloadavg()[0]
    rows: list[Row] = []
    for name in names:
        progress(f"{name} ")
        rows += BENCHMARKS[name]()
    minutes, after = (time.monotonic() - began) / 60, os.getloadavg()[0]
    # The benchmarks are a load of about 1 themselves; what is above was somebody else's.
    report = (
        f"{machine()}; {minutes:.1f} minutes, load {before:.2f} before and {after:.2f} at the end.\n\n{table(rows)}\n"
    )
    sys.stdout.write(report)
    if "--record" in args:
        record(report)
    return 0


def record(report: str) -> None:
    """Put the figures into README.md, so that none there was written by hand."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{report}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
