"""Find and end the descendants of this process. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .prctl import SET_CHILD_SUBREAPER, prctl


class Descendants:
    """The descendants of this process, for a run that has the process to itself.

    The kernel makes orphaned descendants children of this process, so that the tools of a dead CLI can be found.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        with contextlib.suppress(OSError):
            prctl(SET_CHILD_SUBREAPER, 1)

    def started(self) -> None:
        """Remember the present children: the SDK reaps these, `reap` the others."""
        self._own = set(_children(os.getpid()))

    def reap(self) -> None:
        """Reap the adopted orphans that have ended, so that they do not stay as zombies."""
        for pid in set(_children(os.getpid())) - self._own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def end(self, grace: float = 1.0, limit: float = 3.0) -> None:
        """Terminate all descendants; kill those left after ``grace`` seconds, for at most ``limit`` more seconds."""
        _signal_all(signal.SIGTERM)
        self._wait_until_gone(grace)
        # The signal is repeated, as processes may start others before they die.
        self._wait_until_gone(limit, lambda: _signal_all(signal.SIGKILL))

    def _wait_until_gone(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        until = time.monotonic() + seconds
        while _any_runs() and time.monotonic() < until:
            meanwhile()
            time.sleep(0.005)  # the kernel reports only the end of children, not of their children
            self.reap()
        self.reap()


def _signal_all(number: int) -> None:
    for pid in reversed(descendants(os.getpid())):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _any_runs() -> bool:
    return any(_runs(pid) for pid in descendants(os.getpid()))


def _runs(pid: int) -> bool:
    """Return whether a process has not ended; a zombie has ended."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def parent_of(pid: int) -> int | None:
    """Return the pid of a process's parent, or None if there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's ``stat`` from its state on; none if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The state follows the name, which is in parentheses and may contain parentheses.
    return stat[stat.rfind(")") + 2 :].split()


def descendants(root: int) -> list[int]:
    """Return the pids of a process's descendants, parents before their children."""
    found = [*_children(root)]
    for pid in found:  # not recursive: tools can make chains of any length
        found += _children(pid)
    return found


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                yield from map(int, (task / "children").read_text().split())
