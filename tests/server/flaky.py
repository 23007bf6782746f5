"""A SQLite store whose appends fail as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from host_client.store._sqlite import SqliteStore
from host_client.store.base import NO_ADDITIONS, Additions, SessionState


class Flaky(SqliteStore):
    """Fails what it is told to, and counts the attempts; ``holds`` keeps appends back until their future is done."""

    fails: Callable[[], Exception | None] = staticmethod(lambda: None)
    attempts = 0
    holds = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held: list[asyncio.Future[None]] = []
        self.published: list[bytes] = []

    async def append(
        self,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions = NO_ADDITIONS,
    ) -> None:
        self.attempts += 1
        if self.holds:
            self.held.append(asyncio.get_running_loop().create_future())
            await self.held[-1]
        elif (error := self.fails()) is not None:
            raise error
        else:
            await super().append(session_id, owner, events, state, more)

    async def publish(self, session_id: str, data: bytes) -> None:
        self.published.append(data)
