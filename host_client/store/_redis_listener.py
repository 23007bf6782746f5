"""One connection to a Redis for all subscriptions of this process, made again whenever it is lost.

Not redis-py's `PubSub`: it reconnects within any of its calls. When tasks subscribe while its connection is lost, they
open several and read one concurrently, which fails and leaks connections (redis-py 8.1). Here one task alone connects.
"""

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
"""Seconds of silence after which a PING is sent; after as many more, the connection counts as lost."""
_CANCEL_SECONDS = 0.05
_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Channel:
    """A session's channel and how many tasks use it; ``is_subscribed`` is set while the Redis sends its messages."""

    session_id: str
    users: int = 0
    is_subscribed: asyncio.Event = field(default_factory=asyncio.Event)


class Listener:
    """Gives the messages of a Redis to subscribers; ``timeout`` is the maximum of seconds for a subscription."""

    def __init__(self, client: RedisClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._fanout = Fanout()
        self._channels: dict[bytes, _Channel] = {}
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to listen."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="sandspan-store-listener")

    async def stop(self) -> None:
        """End all subscriptions and close the connection."""
        self._fanout.close()
        task, self._task = self._task, None
        # Cancelled repeatedly: redis-py's `wait_for` may swallow it in Python 3.11 (cpython#86296).
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_SECONDS)

    @asynccontextmanager
    async def subscribe(self, session_id: str, only: Note | None = None) -> AsyncGenerator[Inbox]:
        """Yield the inbox of a new subscriber; raise `StoreError` if the Redis does not confirm in time."""
        name = SessionKeys(session_id).channel.encode()
        channel = self._channels.setdefault(name, _Channel(session_id))
        channel.users += 1
        try:
            if channel.users == 1:
                await self._send(b"SUBSCRIBE", name)
            try:
                async with asyncio.timeout(self._timeout):
                    await channel.is_subscribed.wait()
            except TimeoutError:
                raise StoreError(
                    f"{self._client.place} did not confirm a subscription within {self._timeout:g} s"
                ) from None
            with self._fanout.inbox(session_id, only) as inbox:
                yield inbox
        finally:
            channel.users -= 1
            if channel.users == 0:
                del self._channels[name]
                await self._send(b"UNSUBSCRIBE", name)

    async def _send(self, *command: bytes) -> None:
        """Send a command if connected; a new connection subscribes to all channels anyway."""
        # Without this check, a lost connection would reconnect by itself, beside the one that the task makes.
        if self._connection is not None and self._connection.is_connected:
            # The listening task meets the same error, and reconnects.
            with noticing_cancellation(), contextlib.suppress(Exception):
                await self._connection.send_command(*command, check_health=False)

    async def _listen_for_ever(self) -> None:
        delay = 0.0
        is_lost = False
        while True:
            await asyncio.sleep(delay)
            try:
                async for _ in self._listen():
                    if is_lost:
                        _logger.info("connected to %s again", self._client.place)
                    delay, is_lost = 0.0, False
            except Exception as error:  # whatever it is: without this task, subscribers get no more notes
                if not is_lost:
                    _logger.warning("the connection to %s was lost, trying to reconnect: %s", self._client.place, error)
                is_lost = True
            delay = min(max(delay * 2, _FIRST_DELAY), _LAST_DELAY)

    async def _listen(self) -> AsyncGenerator[None]:
        """Connect, yield once connected, then handle all messages; raise the client's errors."""
        connection = self._client.connection()
        try:
            await connection.connect()
            self._connection = connection
            if self._channels:
                await connection.send_command(b"SUBSCRIBE", *self._channels, check_health=False)
            yield
            pinged = False
            while True:
                answer = await connection.read_response(timeout=PING_SECONDS)
                if answer is not None:
                    self._handle(answer)
                elif pinged:
                    raise TimeoutError(f"no answer within {PING_SECONDS:g} s")
                else:
                    await connection.send_command(b"PING", check_health=False)
                pinged = answer is None
        finally:
            self._connection = None
            for channel in self._channels.values():
                channel.is_subscribed.clear()
            await connection.disconnect(nowait=True)

    def _handle(self, answer: Any) -> None:
        match answer:
            case [b"message", bytes(name), bytes(data)] if channel := self._channels.get(name):
                self._notify(channel.session_id, data)
            case [b"subscribe", bytes(name), _] if channel := self._channels.get(name):
                channel.is_subscribed.set()
                # Those who subscribed before the connection was lost may have missed something.
                self._fanout.note(channel.session_id, *Note)
            case _:  # a confirmed UNSUBSCRIBE, the answer to PING
                pass

    def _notify(self, session_id: str, data: bytes) -> None:
        match data[:1]:
            case b"E":
                self._fanout.note(session_id, Note.EVENTS)
            case b"C":
                self._fanout.note(session_id, Note.COMMANDS)
            case _:
                self._fanout.live(session_id, data[1:])
