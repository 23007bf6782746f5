"""Read commands from stdin in a thread, which works for a file, a pipe and a terminal alike."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

from .contract.lines import LineFramer, Oversized
from .contract.protocol import AnyCommand, Command, ProtocolError, decode_command

_CHUNK = 64 * 1024


def read_commands(
    fd: int,
    loop: asyncio.AbstractEventLoop,
    *,
    on_command: Callable[[AnyCommand], None],
    on_refused: Callable[[str], None],
    on_end: Callable[[], None],
) -> None:
    """Start the thread that reads commands; the callbacks run in the event loop, in the order of the lines."""

    def work() -> None:
        framer = LineFramer(Command.MAX_BYTES)
        while chunk := _read(fd):
            for line in framer.feed(chunk):
                _deliver(line, loop, on_command, on_refused)
        if (rest := framer.flush()) is not None:
            _deliver(rest, loop, on_command, on_refused)
        _call(loop, on_end)

    threading.Thread(target=work, name="commands", daemon=True).start()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""  # the terminal has hung up


def _deliver(
    line: bytes | Oversized,
    loop: asyncio.AbstractEventLoop,
    on_command: Callable[[AnyCommand], None],
    on_refused: Callable[[str], None],
) -> None:
    if isinstance(line, Oversized):
        _call(loop, on_refused, f"a command of {line.size} bytes is longer than {Command.MAX_BYTES}")
    elif line.strip():
        try:
            _call(loop, on_command, decode_command(line))
        except ProtocolError as error:
            _call(loop, on_refused, f"not a command: {error}")


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return  # the loop is closed, as the run has ended
