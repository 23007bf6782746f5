"""A SQLite store whose appends fail as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from host_client.store._sqlite import SqliteStore
from host_client.store.base import Additions, SessionState

Told = Callable[[Exception | None], None]


class Flaky(SqliteStore):
    """Fails what it is told to, and counts the attempts; ``holds`` keeps back who is to be told."""

    fails: Callable[[], Exception | None] = staticmethod(lambda: None)
    attempts = 0
    holds = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held: list[Told] = []
        self.published: list[bytes] = []

    def append_soon(
        self, session_id: str, owner: str, events: Sequence[bytes], state: SessionState, more: Additions, done: Told
    ) -> None:
        self.attempts += 1
        if self.holds:
            self.held.append(done)
        elif (error := self.fails()) is not None:
            asyncio.get_running_loop().call_soon(done, error)
        else:
            super().append_soon(session_id, owner, events, state, more, done)

    async def publish(self, session_id: str, data: bytes) -> None:
        self.published.append(data)
