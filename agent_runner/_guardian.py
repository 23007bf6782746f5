"""Keep two small processes above the runner that end all processes below it if one of the three is killed. Linux only.

::

    outer guardian    the process that was started, the only one that a host knows
      inner guardian  leads a session of its own: a signal to the outer one's process group does not reach it
        runner
          CLI, tools

A killed process cannot end its descendants. The guardians can: the kernel makes orphaned descendants their children,
and signals the inner guardian when the outer one ends. Both pass signals on, and end as the process below them ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import NoReturn

from .contract.prctl import SET_CHILD_SUBREAPER, SET_DUMPABLE, SET_PDEATHSIG, prctl
from .contract.processes import descendants
from .contract.signals import ending_signals

KILL_SECONDS = 3.0
"""Maximum seconds to wait for the end of killed processes; a process that waits for a broken disk does not end."""


def fork_below_guardians() -> None:
    """Continue in a grandchild; this process and its child become the guardians, and do not return.

    This process continues without guardians if there is no `prctl`, if a limit of processes is reached, or if it has
    further threads, which a fork would lose.
    """
    if threading.active_count() > 1:
        return
    try:
        prctl(SET_CHILD_SUBREAPER, 1)
    except OSError:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the kernel discards exit codes if it is ignored
    awaited = {*ending_signals(), signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP}
    # Blocked, so that no signal is lost: the guardians wait for them with sigwait.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    outer = os.getpid()
    with contextlib.suppress(OSError):
        if child := os.fork():
            _guard(child, awaited)
        os.setsid()
        prctl(SET_CHILD_SUBREAPER, 1)
        prctl(SET_PDEATHSIG, signal.SIGCONT)  # a stopped process gets it too
        if child := os.fork():
            _guard(child, awaited, outer)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _guard(child: int, awaited: set[signal.Signals], outer: int | None = None) -> NoReturn:
    """Wait until the child or the outer guardian has ended, kill all descendants, and end as the child has ended."""
    status: int = signal.SIGKILL
    try:
        _release_stdio()
        with contextlib.suppress(OSError):
            prctl(SET_DUMPABLE, 0)  # the environment may hold the model's key
        status = _wait(child, awaited, outer)
        _kill_descendants()
    finally:
        _end_as(status)


def _release_stdio() -> None:
    """Close stdin and stdout, so that a host notices when the runner closes them."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def _wait(child: int, awaited: set[signal.Signals], outer: int | None) -> int:
    """Pass signals on until the child or the outer guardian has ended; return the child's wait status, or SIGKILL."""
    while outer is None or os.getppid() == outer:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return status
        if pid == 0:  # no child has ended; another pid is an orphan's: a container's first process adopts all orphans
            _pass_on(signal.sigwait(awaited), child, outer)
    return signal.SIGKILL


def _pass_on(number: int, child: int, outer: int | None) -> None:
    if number in ending_signals():
        os.kill(child, number)
    elif number == signal.SIGTSTP and outer is None:
        _pause(child)


def _pause(inner: int) -> None:
    """Stop this process and the process group of the inner guardian, runner and CLI, until a shell resumes this one."""
    with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
        os.killpg(inner, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(inner, signal.SIGCONT)


def _kill_descendants() -> None:
    """Kill all descendants, again and again, as processes may start others before they die."""
    until = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ChildProcessError):  # without a child there is no descendant, as orphans become children
        while time.monotonic() < until:
            for pid in descendants(os.getpid()):  # the runner first: it must not report the end of the CLI
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
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
