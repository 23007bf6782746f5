"""Rate-limited warnings for causes that recur."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

SECONDS = 300.0
"""Seconds between two warnings of one key."""


class Notices:
    """Log a warning at most once in `SECONDS` for each key. Safe for threads."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._warned_at: dict[str, float] = {}

    def warn(self, key: str, message: str, *arguments: object) -> None:
        """Log a warning, unless one with this key was logged in the last `SECONDS`."""
        now = self._clock()
        with self._lock:
            if now - self._warned_at.get(key, -SECONDS) < SECONDS:
                return
            self._warned_at[key] = now
        self._logger.warning(message, *arguments)

    def forget(self, key: str) -> None:
        """Let the next warning of a key be logged at once, because its cause was gone in between."""
        with self._lock:
            self._warned_at.pop(key, None)
