"""Calls to a Redis, each with a timeout and with errors that show no password."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from host_client.errors import ConfigurationError
from host_client.extras import needs

from .base import StoreError

MAX_CONNECTIONS = 32
OLDEST_REDIS = (6, 2)
"""The first version that can trim a stream by id."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class RedisClient:
    """A pool of connections to a Redis; ``timeout`` is the maximum of seconds for each call as a whole.

    A call that may be executed twice is repeated once if its connection was lost: after a restart of the Redis, every
    connection of the pool is.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._library = _library()
        self._timeout = timeout
        self.place = _place(url)
        self._options = _options(url, timeout)
        self._retries = (_retry(0), _retry(1))
        self._redis: Any = None
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        """Makes callers take turns; the pool alone would favour the caller that has just returned a connection."""
        self._scripts: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect, and check the version and the settings; raise `StoreError`."""
        pool = self._library.BlockingConnectionPool(max_connections=MAX_CONNECTIONS, **self._options)
        self._redis = self._library.Redis.from_pool(pool)
        try:
            info: dict[str, Any] = await self.call("INFO", again=True)
        except BaseException:
            await self.close()
            raise
        version = str(info.get("redis_version", "0.0"))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
            await self.close()
            raise StoreError(
                f"{self.place} has version {version}; sandspan needs {'.'.join(map(str, OLDEST_REDIS))} or later"
            )
        if info.get("maxmemory") and (policy := info.get("maxmemory_policy")) != "noeviction":
            _logger.warning(
                "%s deletes sessions when its memory is full: its maxmemory-policy is %s, set noeviction",
                self.place,
                policy,
            )

    async def close(self) -> None:
        """Close all connections."""
        client, self._redis = self._redis, None
        self._scripts.clear()
        if client is not None:
            await client.aclose()

    async def call(self, *command: Any, again: bool = False) -> Any:
        """Send a command and return its answer; raise `StoreError`. ``again``: it may be executed twice."""
        return await self.guard(lambda client: client.execute_command(*command), again=again)

    async def script(self, code: str, keys: Sequence[str], arguments: Sequence[Any], *, again: bool = False) -> Any:
        """Run a script; see `call`."""
        return await self.guard(lambda client: self._script(client, code)(keys, arguments), again=again)

    async def script_for_each(self, code: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run a script, which may be executed twice, with each of these keys and arguments, in one round trip."""
        return await self._pipelined(
            calls, lambda client, pipeline, call: self._script(client, code)(*call, client=pipeline)
        )

    async def call_for_each(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands that may be executed twice, in one round trip."""
        return await self._pipelined(commands, lambda _, pipeline, command: pipeline.execute_command(*command))

    async def _pipelined(self, items: Sequence[T], add: Callable[[Any, Any, T], Awaitable[Any]]) -> list[Any]:
        async def run(client: Any) -> list[Any]:
            async with client.pipeline(transaction=False) as pipeline:
                for item in items:
                    await add(client, pipeline, item)
                return await pipeline.execute()

        return await self.guard(run, again=True)

    async def guard(self, act: Callable[[Any], Awaitable[T]], *, again: bool) -> T:
        """Do something with the client within the timeout; raise `StoreError` for any failure."""
        client = self._redis
        if client is None:
            raise StoreError(f"the store at {self.place} is closed")
        try:
            with noticing_cancellation():
                async with asyncio.timeout(self._timeout), self._turns:
                    return await self._retries[again].call_with_retry(lambda: act(client), _nothing)
        except (TimeoutError, self._library.TimeoutError):
            raise StoreError(f"{self.place} did not answer within {self._timeout:g} s") from None
        except (self._library.RedisError, OSError) as error:
            raise StoreError(f"{self.place} cannot be used: {error}") from None

    def connection(self) -> Any:
        """Return a new connection outside the pool, not yet connected."""
        return self._redis.connection_pool.make_connection()

    def _script(self, client: Any, code: str) -> Any:
        if code not in self._scripts:
            self._scripts[code] = client.register_script(code)
        return self._scripts[code]


@contextmanager
def noticing_cancellation() -> Generator[None]:
    """Raise `CancelledError` at the end of the block if the task was cancelled in it and the block swallowed that.

    redis-py uses `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation (cpython#86296).
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


def _library() -> Any:
    with needs("redis", "--store redis://…"):
        import redis.asyncio as library  # an extra: a store in a file needs no Redis client
    return library


def _options(url: str, timeout: float) -> dict[str, Any]:
    from redis.asyncio.connection import parse_url  # here for the same reason

    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its message may hold the password
        raise ConfigurationError(
            "--store takes redis://user:password@host:6379/0, with special characters in the password percent-encoded"
        ) from None
    ours = {
        "retry": _retry(0),  # `RedisClient.guard` repeats calls: it knows which ones may be executed twice
        "timeout": timeout,
        "protocol": 2,
        "decode_responses": False,
    }
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, **given, **ours}


def _retry(times: int) -> Any:
    from redis.asyncio.retry import Retry  # here for the same reason
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError

    return Retry(NoBackoff(), times, (RedisConnectionError,))


async def _nothing(_: Exception) -> None:
    """Do nothing between two attempts: the client replaces a lost connection by itself."""


def _place(url: str) -> str:
    """Return a Redis's address for messages, without its password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"the Redis at {parts.path}"
    try:
        return f"the Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"
    except ValueError:
        return "the Redis"
