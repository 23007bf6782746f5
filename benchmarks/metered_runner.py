"""Run `agent_runner` and write its CPU seconds and those of the CLI with its tools into a file at its end.

Another process cannot measure them separately: for an ended process the kernel reports one sum with its children's.
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
    os._exit = _write_and_exit  # the function by which the runner ends its process
    sys.exit(main())
