"""The processes below this one, so that none is left behind. Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


class Descendants:
    """Every process below this one, for the one run that has this process to itself.

    Orphaned descendants become children of this process, so that a dead CLI's tools can be found.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def started(self) -> None:
        """Take the children there are now for ours: the SDK waits for those."""
        self._own = set(_children(os.getpid()))

    def reap(self) -> None:
        """Reap the adopted ones that ended; nobody else does."""
        for pid in set(_children(os.getpid())) - self._own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def end(self, grace: float = 1.0, limit: float = 3.0) -> None:
        """Terminate all, and kill what still runs after ``grace`` seconds, for ``limit`` seconds at most."""
        _signal_all(signal.SIGTERM)
        self._until_gone(grace)
        # Again and again, as what is to be killed may be starting others.
        self._until_gone(limit, lambda: _signal_all(signal.SIGKILL))

    def _until_gone(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        until = time.monotonic() + seconds
        while _any_runs() and time.monotonic() < until:
            meanwhile()
            time.sleep(0.005)  # nobody tells of the end of what others have started
            self.reap()
        self.reap()


def _signal_all(number: int) -> None:
    for pid in list(_descendants(os.getpid())):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _any_runs() -> bool:
    return any(_runs(pid) for pid in _descendants(os.getpid()))


def _runs(pid: int) -> bool:
    """Whether a process has not ended; one that only waits to be reaped has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The name in parentheses may hold anything, and the state follows it.
    return stat[stat.rfind(")") + 2] not in "ZX"


def _descendants(root: int) -> Iterator[int]:
    for child in _children(root):
        yield from _descendants(child)
        yield child


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                yield from map(int, (task / "children").read_text().split())
