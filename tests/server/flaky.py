"""A SQLite store whose appends fail or wait as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host_client.store._sqlite import SqliteStore


class Flaky(SqliteStore):
    """A store that counts appends and raises the error that ``fails`` returns.

    With ``holds``, an append waits for its future in ``held`` and writes nothing.
    """

    fails: Callable[[], Exception | None] = staticmethod(lambda: None)
    attempts = 0
    holds = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held: list[asyncio.Future[None]] = []
        self.published: list[bytes] = []

    async def append(self, *args: Any, **kwargs: Any) -> None:
        self.attempts += 1
        if self.holds:
            self.held.append(asyncio.get_running_loop().create_future())
            await self.held[-1]
        elif (error := self.fails()) is not None:
            raise error
        else:
            await super().append(*args, **kwargs)

    async def publish(self, session_id: str, data: bytes) -> None:
        self.published.append(data)
