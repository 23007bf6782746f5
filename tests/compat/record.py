"""Record the fixtures: ``python -m tests.compat.record``, with the names of recorders for some of them.

The files in ``fixtures/`` were recorded by the code of commit f6f5305, the last one before the packages were laid out
anew. They are what a user of that version has on the disk, in a Redis or in E2B, and the tests hold that today's code
works with it. Files recorded by later code would only show that the code agrees with itself, so they are never recorded
again: this refuses to run on any other code of `agent_runner` and `host_client`, and to replace a file that is there. A
later format gets further files beside these.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.compat.recorders import imports, relay, runs, sandboxes, stores, telemetry

COMMIT = "f6f5305"
RECORDERS: dict[str, Callable[[], None]] = {
    "imports": imports.record,
    "relay": relay.record,
    "runs": runs.record,
    "sandboxes": sandboxes.record,
    "stores": stores.record,
    "telemetry": telemetry.record,
}

_CHECKOUT = Path(__file__).resolve().parents[2]


def main(names: list[str]) -> int:
    """Run the recorders that are named, all by default."""
    if unknown := set(names) - RECORDERS.keys():
        print(f"unknown recorder {', '.join(sorted(unknown))}: take some of {', '.join(RECORDERS)}", file=sys.stderr)
        return 2
    packages = ("agent_runner", "host_client")
    compared = subprocess.run(["git", "diff", "--quiet", COMMIT, "--", *packages], cwd=_CHECKOUT, check=False)
    if compared.returncode != 0:
        print(f"{' and '.join(packages)} are not those of {COMMIT}: the fixtures stay as they are", file=sys.stderr)
        return 1
    for name in names or RECORDERS:
        RECORDERS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
