"""Call a function when a condition has held for some time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class WhileTimer:
    """Calls ``action`` once a condition has held for ``seconds`` without a break."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._seconds = seconds
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    def update(self, holds: bool) -> None:
        """Take note of whether the condition holds now. Must be called in the event loop."""
        if holds and self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._act)
        elif not holds and self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _act(self) -> None:
        self._handle = None
        self._action()
