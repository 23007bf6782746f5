"""One connection to a Redis for all subscriptions of this process, made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ._fanout import Fanout, Inbox
from ._redis_client import RedisClient, noticing_cancellation
from ._redis_keys import SessionKeys
from .base import Note, StoreError

PING_SECONDS = 10.0
"""How long it may be silent; then it is asked whether it is there, and given as long again."""
_CANCEL_SECONDS = 0.05
_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Channel:
    """A session's channel; ``heard`` is set while the Redis has it on its list."""

    session_id: str
    users: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)


class Listener:
    """Passes on what a Redis publishes. ``timeout`` is how many seconds a subscription may take."""

    def __init__(self, client: RedisClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._fanout = Fanout()
        self._channels: dict[bytes, _Channel] = {}
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen until `stop`."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="sandspan-store-listener")

    async def stop(self) -> None:
        """Let all subscribers end, and close the connection."""
        self._fanout.close()
        task, self._task = self._task, None
        # More than once, as `wait_for` of Python 3.11, which the client uses, may swallow it (cpython#86296).
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_SECONDS)

    @asynccontextmanager
    async def subscribe(self, session_id: str, only: Note | None = None) -> AsyncGenerator[Inbox]:
        """Be a subscriber; raise `StoreError` if the Redis does not say in time that it listens."""
        name = SessionKeys(session_id).channel.encode()
        channel = self._channels.setdefault(name, _Channel(session_id))
        channel.users += 1
        try:
            if channel.users == 1:
                await self._send(b"SUBSCRIBE", name)
            try:
                async with asyncio.timeout(self._timeout):
                    await channel.heard.wait()
            except TimeoutError:
                raise StoreError(f"{self._client.place} cannot be listened to for now") from None
            with self._fanout.inbox(session_id, only) as inbox:
                yield inbox
        finally:
            channel.users -= 1
            if channel.users == 0:
                del self._channels[name]
                await self._send(b"UNSUBSCRIBE", name)

    async def _send(self, *command: bytes) -> None:
        """Send a command if there is a connection; all is sent again to the next one."""
        # A connection that was just lost would connect by itself, beside the one that is made next.
        if self._connection is not None and self._connection.is_connected:
            # What fails here fails where it is listened to, and is mended there.
            with noticing_cancellation(), contextlib.suppress(Exception):
                await self._connection.send_command(*command, check_health=False)

    async def _listen_for_ever(self) -> None:
        delay = 0.0
        told = False
        while True:
            await asyncio.sleep(delay)
            try:
                async for _ in self._listen():
                    if told:
                        _logger.info("%s is listened to again", self._client.place)
                    delay, told = 0.0, False
            except Exception as error:  # whatever it was, nobody would be told anything any more
                if not told:
                    _logger.warning("the connection to %s was lost, and is made again: %s", self._client.place, error)
                told = True
            delay = min(max(delay * 2, _FIRST_DELAY), _LAST_DELAY)

    async def _listen(self) -> AsyncGenerator[None]:
        """Connect and pass on all that comes, yielding once connected; raise what the client raises."""
        connection = self._client.connection()
        try:
            await connection.connect()
            self._connection = connection
            if self._channels:
                await connection.send_command(b"SUBSCRIBE", *self._channels, check_health=False)
            yield
            asked = False
            while True:
                answer = await connection.read_response(timeout=PING_SECONDS)
                if answer is not None:
                    self._take(answer)
                elif asked:
                    raise TimeoutError(f"no answer within {PING_SECONDS:g} s")
                else:
                    await connection.send_command(b"PING", check_health=False)
                asked = answer is None
        finally:
            self._connection = None
            for channel in self._channels.values():
                channel.heard.clear()
            await connection.disconnect(nowait=True)

    def _take(self, answer: Any) -> None:
        match answer:
            case [b"message", bytes(name), bytes(data)] if channel := self._channels.get(name):
                self._pass_on(channel.session_id, data)
            case [b"subscribe", bytes(name), _] if channel := self._channels.get(name):
                channel.heard.set()
                # Whoever subscribed before the connection was lost may have missed something.
                self._fanout.note(channel.session_id, *Note)
            case _:  # an unsubscription, an answer to PING
                pass

    def _pass_on(self, session_id: str, data: bytes) -> None:
        match data[:1]:
            case b"E":
                self._fanout.note(session_id, Note.EVENTS)
            case b"C":
                self._fanout.note(session_id, Note.COMMANDS)
            case _:
                self._fanout.live(session_id, data[1:])
