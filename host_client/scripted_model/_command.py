"""Runs a command as a child process that a signal to this process ends too, with all that it started."""

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
from host_client.signals import ending_signals

NOT_FOUND = 127
"""The exit code of a shell that finds no such command."""

GRACE_SECONDS = 30.0
"""How long a command that was told to end may take before it is killed."""


def run_command(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end; return its exit code, or 128 + n if signal n ended it.

    SIGTERM and SIGHUP are passed on to the command, and SIGINT where no terminal sends it to both. When the command has
    ended after such a signal, the processes that it left are ended.
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
    """Passes signals of this process on to its command."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that was for the command to be told."""
        self._process: subprocess.Popen[bytes] | None = None
        self._killing: threading.Timer | None = None
        self._terminal_tells = _has_terminal()

    def __enter__(self) -> _Forwarder:
        self._previous = {number: signal.signal(number, self._pass_on) for number in ending_signals()}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def to(self, process: subprocess.Popen[bytes]) -> Generator[None]:
        """Send signals to this process, those included that came before it was started."""
        self._process = process
        if self.received is not None:
            self._tell(self.received)
        yield
        if self._killing is not None:
            self._killing.cancel()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._terminal_tells:
            return  # a terminal sends Ctrl-C to the command as well; a second one means something else to it
        self.received = self.received or number
        self._tell(number)

    def _tell(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        if self._killing is None:
            self._killing = threading.Timer(GRACE_SECONDS, self._process.kill)
            self._killing.daemon = True
            self._killing.start()


def _has_terminal() -> bool:
    """Whether this process and its command are in the foreground of a terminal, which sends Ctrl-C to all of them."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
