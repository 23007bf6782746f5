"""The connections to a Redis: every call ends in time, and says what is wrong without telling a password."""

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
"""The first that trims a stream by number."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class RedisClient:
    """A pool of connections; ``timeout`` is in seconds, for a call as a whole.

    A call that may be done twice is tried again once when its connection was lost, as connections of a pool are when a
    Redis is started again.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._library = _library()
        self._timeout = timeout
        self.place = _place(url)
        self._options = _options(url, timeout)
        self._redis: Any = None
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        """Gives connections in the order of asking; the pool gives them to who has just had one."""
        self._scripts: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect, and see whether this is a Redis that can be used; raise `StoreError`."""
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
                f"{self.place} is a Redis {version}: {'.'.join(map(str, OLDEST_REDIS))} is needed, or later"
            )
        if info.get("maxmemory") and (policy := info.get("maxmemory_policy")) != "noeviction":
            _logger.warning(
                "%s forgets sessions when it is full: set maxmemory-policy noeviction, not %s", self.place, policy
            )

    async def close(self) -> None:
        """Close all connections."""
        client, self._redis = self._redis, None
        self._scripts.clear()
        if client is not None:
            await client.aclose()

    async def call(self, *command: Any, again: bool = False) -> Any:
        """Send a command; raise `StoreError`. ``again`` says that it may be done twice."""
        return await self.guard(lambda client: client.execute_command(*command), again=again)

    async def script(self, code: str, keys: Sequence[str], arguments: Sequence[Any], *, again: bool = False) -> Any:
        """Run a script; see `call`."""
        return await self.guard(lambda client: self._script(client, code)(keys, arguments), again=again)

    async def script_for_each(self, code: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run a script that may be done twice many times, in one round trip."""

        async def run(client: Any) -> list[Any]:
            async with client.pipeline(transaction=False) as pipeline:
                for keys, arguments in calls:
                    await self._script(client, code)(keys, arguments, client=pipeline)
                return await pipeline.execute()

        return await self.guard(run, again=True)

    async def call_for_each(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands that may be done twice, in one round trip."""

        async def run(client: Any) -> list[Any]:
            async with client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return await pipeline.execute()

        return await self.guard(run, again=True)

    async def guard(self, act: Callable[[Any], Awaitable[T]], *, again: bool) -> T:
        """Do something with the client; raise `StoreError` for all that goes wrong, in time."""
        if self._redis is None:
            raise StoreError(f"the store at {self.place} is closed")
        try:
            with noticing_cancellation():
                async with asyncio.timeout(self._timeout), self._turns:
                    try:
                        return await act(self._redis)
                    except self._library.ConnectionError:
                        if not again:
                            raise
                        return await act(self._redis)
        except (TimeoutError, self._library.TimeoutError):
            raise StoreError(f"{self.place} did not answer within {self._timeout:g} s") from None
        except (self._library.RedisError, OSError) as error:
            raise StoreError(f"{self.place} cannot be used: {error}") from None

    def connection(self) -> Any:
        """Return a connection of its own, not yet connected."""
        return self._redis.connection_pool.make_connection()

    def _script(self, client: Any, code: str) -> Any:
        if code not in self._scripts:
            self._scripts[code] = client.register_script(code)
        return self._scripts[code]


@contextmanager
def noticing_cancellation() -> Generator[None]:
    """Raise `CancelledError` at the end of a block in which the task was cancelled, and did not notice.

    `wait_for` of Python 3.11, which the client uses, may swallow it (cpython#86296).
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
    # Here for the same reason.
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    try:
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError:  # its message may hold the password
        raise ConfigurationError(
            "--store takes redis://user:password@host:6379/0, with what is special in it percent-encoded"
        ) from None
    ours = {
        # Tried again above, where it is known what may be done twice.
        "retry": Retry(NoBackoff(), 0),
        "timeout": timeout,
        "protocol": 2,
        "decode_responses": False,
    }
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, **given, **ours}


def _place(url: str) -> str:
    """Return where a URL leads, without its password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"the Redis at {parts.path}"
    try:
        return f"the Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"
    except ValueError:
        return "the Redis"
