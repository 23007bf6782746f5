"""The signals that ask a runner or a host to end."""

from __future__ import annotations

import signal


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask this process to end; without SIGHUP if it is ignored, as under ``nohup``."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(each for each in ending if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN)


def ignore(_number: int, _frame: object) -> None:
    """Do nothing, as the handler of a signal. Unlike SIG_IGN, child processes do not inherit it."""
