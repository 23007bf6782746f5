"""Signals that end a command: none of them may leave a process or a directory of ours behind."""

from __future__ import annotations

import signal
from types import FrameType

from agent_runner.contract.processes import Descendants


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to end; without SIGHUP where ``nohup`` has it ignored."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(each for each in wanted if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN)


def exit_on_signals() -> None:
    """Let the first SIGTERM or SIGHUP end child processes and raise `SystemExit`, so that ``with`` blocks are left.

    By default these signals end Python at once, and what such a block made stays. SIGINT raises `KeyboardInterrupt`
    already. Commands that end sessions first set handlers of their own in place of these.
    """
    caught = [each for each in ending_signals() if each != signal.SIGINT]

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, _ignore)  # another signal must not break off the removal
        Descendants().end()  # here, as an exception in the midst of starting a process would leave it running
        raise SystemExit(128 + number)

    for each in caught:
        signal.signal(each, leave)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN this is not inherited by child processes."""
