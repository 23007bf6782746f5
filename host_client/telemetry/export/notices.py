"""Warnings that are told once in a while, however often their cause recurs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

SECONDS = 300.0


class Notices:
    """Logs a warning at most once in five minutes for each key."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def warn(self, key: str, message: str, *arguments: object) -> None:
        """Log, unless the same was told a short while ago."""
        now = self._clock()
        with self._lock:
            if now - self._told.get(key, -SECONDS) < SECONDS:
                return
            self._told[key] = now
        self._logger.warning(message, *arguments)

    def forget(self, key: str) -> None:
        """The cause is gone: should it come back, that is news."""
        with self._lock:
            self._told.pop(key, None)
