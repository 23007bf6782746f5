"""Start the processes of a measurement: runners, a server and readers."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.support import REPOSITORY

LIMIT_SECONDS = 120
PAGE = os.sysconf("SC_PAGE_SIZE")


class Server:
    """A running server whose CPU time and memory can be read."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = int(line(process))

    def post(self, path: str, body: object) -> dict[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status in (201, 202, 200), text
        return json.loads(text) if text else {}

    @property
    def cpu(self) -> float:
        """Return the CPU seconds of all the server's threads, to the nanosecond; the ticks in `/proc` last 10 ms."""
        return time.clock_gettime(_cpu_clock(self.process.pid))

    @property
    def memory(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE / 2**20


def _cpu_clock(pid: int) -> int:
    """Return the id of a process's CPU clock, like C's `clock_getcpuclockid`; Python offers only a thread's."""
    return (~pid << 3) | 2


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def process(*args: str) -> Generator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", *args], cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        assert started.stdout is not None
        started.stdout.close()


@contextmanager
def server(kind: str, folder: Path, *, events: int, rate: float) -> Generator[Server]:
    path = str(folder / "runners")
    with ExitStack() as stack:
        runners = stack.enter_context(process("benchmarks.streaming.runners", path))
        assert line(runners) == "ready"
        store = [str(folder / "service.sqlite")] if kind == "service" else []
        args = (f"benchmarks.streaming.{kind}", path, *store, str(events), str(rate))
        yield Server(stack.enter_context(process(*args)))
