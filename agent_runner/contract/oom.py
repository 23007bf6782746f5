"""Whether a process was killed because memory ran out. Linux; 0 elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int:
    """Return how many processes this machine's kernel has killed for want of memory.

    The count is the whole machine's: it says why only together with a SIGKILL nobody sent.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
