"""Handles the signals that end a command, so that it leaves no process or temporary directory behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from agent_runner.contract.processes import Descendants
from agent_runner.contract.signals import ending_signals, ignore

T = TypeVar("T")

_raised: list[signal.Signals] = []
"""The signal for which `exit_on_signals` has raised an exception, if any."""


def exit_on_signals() -> None:
    """Make the first signal end child processes and raise an exception, so that ``with`` blocks clean up.

    SIGTERM and SIGHUP raise `SystemExit`, SIGINT raises `KeyboardInterrupt`. By default the first two end Python at
    once, without cleaning up, and none ends child processes. Commands that run sessions replace these handlers.

    Python drops an exception that is raised in some places, such as a callback of its import system. Then the process
    goes on until `loop_signals`, which gets the signal again.
    """
    caught = ending_signals()

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, ignore)  # another signal must not interrupt the clean-up
        _raised.append(signal.Signals(number))
        Descendants().end()  # here, as the exception may interrupt the start of a process and leave it running
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for each in caught:
        signal.signal(each, leave)


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; a signal that asks this process to end cancels the coroutine first.

    SIGTERM and SIGHUP then raise `SystemExit`, SIGINT raises `KeyboardInterrupt`. An exception that a signal handler
    raises within an event loop may instead end in a callback that logs it, and the process continues.
    """
    received: list[signal.Signals] = []

    async def cancelled_by_signals() -> T:
        task = asyncio.ensure_future(work)

        def cancel(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        with loop_signals(cancel):
            return await task

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        if not received:
            raise
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + received[0])


@contextmanager
def loop_signals(on_signal: Callable[[signal.Signals], None]) -> Generator[None]:
    """Within the block, call a function in the running event loop for each signal that asks this process to end.

    It is called at once if there was such a signal before, whose exception Python has dropped.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in ending_signals()}
    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        while _raised:
            on_signal(_raised.pop())
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
