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
    file, own = Path(os.environ[VARIABLE]), time.process_time()
    if file.exists():  # by the runner itself: this is one of its guardians, which end after it
        runner, cli = json.loads(file.read_text())
        seconds = [runner + own, cli]
    else:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = [own, children.ru_utime + children.ru_stime]
    file.write_text(json.dumps(seconds))
    _exit(code)


if __name__ == "__main__":
    os._exit = _write_and_exit  # the function by which the runner ends its process
    sys.exit(main())
