"""A real Redis on the loopback interface."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.01


class RedisServer:
    """A Redis that can be started and stopped at one address; each start is empty unless it ``keeps`` its data."""

    def __init__(self, folder: Path, *, keeps: bool = False) -> None:
        self._keeps = keeps
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which("redis-server")
        assert program is not None, "redis-server is not installed (Debian: apt-get install redis-server)"
        keeps = "yes" if self._keeps else "no"
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": keeps, "dir": self._folder}
        command = [program, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        limit = time.monotonic() + WAIT_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < limit, (self._folder / "log").read_text()
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)
            self._process = None

    def command(self, *words: str) -> str:
        """Send a command and return the answer as `redis-cli` shows it."""
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_SECONDS).stdout.strip()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def redis_server(folder: Path, *, keeps: bool = False) -> Generator[RedisServer]:
    """Run a Redis; its folder has its log and the data that it ``keeps``."""
    server = RedisServer(folder, keeps=keeps)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
