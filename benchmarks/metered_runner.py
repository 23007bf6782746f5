"""`agent_runner` that writes its CPU time into a file at its end: its own, and that of the CLI with the CLI's tools.

Another process cannot measure this: for a process that has ended the kernel gives one figure, which includes children.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import NoReturn

from agent_runner.__main__ import main

VARIABLE = "BENCH_RUNNER_CPU"
_exit = os._exit


def _write_and_exit(code: int) -> NoReturn:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [time.process_time(), children.ru_utime + children.ru_stime]
    Path(os.environ[VARIABLE]).write_text(json.dumps(seconds))
    _exit(code)


if __name__ == "__main__":
    os._exit = _write_and_exit  # how the runner ends
    sys.exit(main())
