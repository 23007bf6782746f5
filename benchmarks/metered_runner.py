"""`agent_runner` that records its own CPU time at its end, without the CLI's.

From outside it cannot be measured, as the kernel's time of an ended process includes its children.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from agent_runner.__main__ import main

VARIABLE = "BENCH_RUNNER_CPU"
_exit = os._exit


def _write_and_exit(code: int) -> NoReturn:
    Path(os.environ[VARIABLE]).write_text(str(time.process_time()))
    _exit(code)


if __name__ == "__main__":
    os._exit = _write_and_exit  # how the runner ends
    sys.exit(main())
