"""Real servers on the loopback interface that a test runs for a while."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

POLL_SECONDS = 0.05


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], *, url: str, log: Path, seconds: float, environ: Mapping[str, str] | None = None
) -> Generator[None]:
    """Run a server until the block ends, in the folder of its log; wait until its URL answers.

    Its start and its end take at most ``seconds`` each.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent, env=environ) as process,
    ):
        try:
            _wait_until_ready(process, url, log, seconds)
            yield
        finally:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while True:
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        try:
            with urlopen(url, timeout=seconds):
                return
        except OSError:
            time.sleep(POLL_SECONDS)  # a server does not report that it is ready
