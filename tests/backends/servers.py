"""Real backends on the loopback interface; `make test-backends` installs each into an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".backends"
WAIT_SECONDS = 100.0
POLL_SECONDS = 0.1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(name: str, *arguments: str, url: str, folder: Path, environ: Mapping[str, str]) -> Generator[None]:
    """Run the program of a backend until the block ends; wait until its URL answers."""
    program = ENVIRONMENTS / name / "bin" / name
    assert program.exists(), f"{name} is not installed: run make test-backends"
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(folder), **environ}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=folder, env=env) as process,
    ):
        try:
            _wait_until_ready(process, url, folder / "log")
            yield
        finally:
            process.terminate()
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        try:
            with urlopen(url, timeout=WAIT_SECONDS):
                return
        except OSError:
            time.sleep(POLL_SECONDS)
