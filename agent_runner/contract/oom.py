"""Detect that the kernel killed a process because memory ran out. Linux only."""

from __future__ import annotations

import contextlib
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int:
    """Return the number of processes that this machine's kernel has killed for lack of memory; 0 if it is unknown.

    The number covers the whole machine, so it explains a death only together with a SIGKILL that we did not send.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
