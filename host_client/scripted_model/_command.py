"""Runs a command as a child process; a signal to this process also ends the command and its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from types import FrameType

from agent_runner.contract.processes import Descendants
from agent_runner.contract.signals import ending_signals

NOT_FOUND = 127
"""Exit code of a shell for a command that does not exist."""

GRACE_SECONDS = 30.0
"""Seconds that a command has to end after a signal, before it is killed."""


def run_command(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end; return its exit code, or 128 + n if signal n ended it.

    SIGTERM and SIGHUP are passed on to the command, and SIGINT unless a terminal sends it to both. When the command has
    ended after such a signal, processes that it left are ended.
    """
    descendants = Descendants()
    with _Forwarder() as forwarder:
        try:
            process = subprocess.Popen(command, env=environ)
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error.strerror}\n")
            return NOT_FOUND
        descendants.started()
        with forwarder.to(process):
            code = process.wait()
        if forwarder.received is not None:
            descendants.end(grace=GRACE_SECONDS)
    return code if code >= 0 else 128 - code


class _Forwarder:
    """Passes signals that this process receives on to its command."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that was to be passed on."""
        self._process: subprocess.Popen[bytes] | None = None
        self._killing: threading.Timer | None = None
        self._terminal_sends = _has_terminal()

    def __enter__(self) -> _Forwarder:
        self._previous = {number: signal.signal(number, self._pass_on) for number in ending_signals()}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def to(self, process: subprocess.Popen[bytes]) -> Generator[None]:
        """Within the block, pass signals on to this process; also a signal received before the process was started."""
        self._process = process
        if self.received is not None:
            self._send(self.received)
        yield
        if self._killing is not None:
            self._killing.cancel()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._terminal_sends:
            return  # a terminal sends Ctrl-C to the command itself; to pass it on would send it twice
        self.received = self.received or number
        self._send(number)

    def _send(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        if self._killing is None:
            self._killing = threading.Timer(GRACE_SECONDS, self._process.kill)
            self._killing.daemon = True
            self._killing.start()


def _has_terminal() -> bool:
    """Return whether this process is in the foreground of a terminal, which sends Ctrl-C to its command too."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
