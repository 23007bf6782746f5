"""Keep two small processes above the runner that end all below it when one of the three is killed. Linux only.

::

    front             the process that was started, the only one that its host knows
      guardian        leads a session of its own, so that a signal to the front's process group does not reach it
        runner
          CLI, tools

A killed process cannot end what is below it. Front and guardian can, as the kernel makes orphaned descendants their
children, and tells the guardian when the front ends. Both pass signals on and end as the process below them ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import NoReturn

from .contract.prctl import SET_CHILD_SUBREAPER, SET_DUMPABLE, SET_PDEATHSIG, prctl
from .contract.processes import signal_descendants
from .contract.signals import ending_signals

KILL_SECONDS = 5.0
"""Maximum seconds to wait for the end of killed processes; one that waits for a broken disk does not end."""


def fork_below_guardians() -> None:
    """Continue in a grandchild; this process and its child become front and guardian, and do not return.

    Where that is impossible, this process continues, unguarded: a system other than Linux, a sandbox that forbids it,
    a limit of processes, or a process with further threads, which a fork would lose.
    """
    if threading.active_count() > 1:
        return
    try:
        prctl(SET_CHILD_SUBREAPER, 1)
    except OSError:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the kernel discards exit codes if it is ignored
    awaited = {*ending_signals(), signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP}
    # Blocked from here on, so that none is lost: front and guardian wait for them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    front = os.getpid()
    with contextlib.suppress(OSError):
        if child := os.fork():
            _guard(child, awaited)
        os.setsid()
        prctl(SET_CHILD_SUBREAPER, 1)
        prctl(SET_PDEATHSIG, signal.SIGCONT)  # a stopped process gets it too
        if child := os.fork():
            _guard(child, awaited, front)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _guard(child: int, awaited: set[signal.Signals], front: int | None = None) -> NoReturn:
    """Wait until the child has ended, or the front; then end all descendants, and end as the child has ended."""
    status: int = signal.SIGKILL
    try:
        _release_stdio()
        with contextlib.suppress(OSError):
            prctl(SET_DUMPABLE, 0)  # the environment may hold the model's key
        status = _wait(child, awaited, front)
        _kill_descendants()
    finally:
        _end_as(status)


def _release_stdio() -> None:
    """Close stdin and stdout, so that their other ends see the runner's end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def _wait(child: int, awaited: set[signal.Signals], front: int | None) -> int:
    """Pass signals on until the child has ended; return its wait status, or that of a killed one if the front ended."""
    while front is None or os.getppid() == front:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return status
        if pid == 0:  # none has ended; any other is an orphan, as a container's first process adopts all of them
            _pass_on(signal.sigwait(awaited), child, front)
    return signal.SIGKILL


def _pass_on(number: int, child: int, front: int | None) -> None:
    if number in ending_signals():
        os.kill(child, number)
    elif number == signal.SIGTSTP and front is None:
        _pause(child)


def _pause(guardian: int) -> None:
    """Stop this process and the group of the guardian, the runner and the CLI until a shell's ``fg`` or ``bg``."""
    os.killpg(guardian, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.killpg(guardian, signal.SIGCONT)


def _kill_descendants() -> None:
    """Kill all descendants, and those that they start meanwhile."""
    until = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ChildProcessError):  # without a child there is no descendant: orphans become children
        while time.monotonic() < until:
            signal_descendants(signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            signal.sigtimedwait({signal.SIGCHLD}, 0.01)


def _end_as(status: int) -> NoReturn:
    """End with the exit code of a wait status, or by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other action
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)  # a container's first process does not end by its own signal
