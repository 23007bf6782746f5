"""Dump and restore the content of a Redis as plain commands.

Every version of Redis accepts them, unlike the payloads of the DUMP command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import redis

from tests.support.redis import RedisServer

Words = list[str]
"""A command and its arguments; binary arguments are decoded as Latin-1."""

_IGNORED = ":lease"
"""Suffix of the keys of leases, which are not dumped: a killed owner's lease expires within seconds."""


def dump(server: RedisServer) -> list[Words]:
    """Return the commands that restore the content of a Redis, key by key."""
    with _client(server) as client:
        keys = sorted(cast("list[bytes]", client.keys("*")))
        return [_words(each) for key in keys if not key.decode().endswith(_IGNORED) for each in _commands(client, key)]


def restore(server: RedisServer, commands: list[Words]) -> None:
    """Run the commands of a dump."""
    with _client(server) as client:
        for words in commands:
            client.execute_command(*(word.encode("latin-1") for word in words))


def _client(server: RedisServer) -> Any:
    return cast("Any", redis.Redis)(port=server.port)


def _words(command: tuple[Any, ...]) -> Words:
    return [each.decode("latin-1") if isinstance(each, bytes) else str(each) for each in command]


def _commands(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    kind = cast("bytes", client.type(key)).decode()
    yield from _MAKERS[kind](client, key)
    if (left := client.pttl(key)) > 0:
        yield ("PEXPIRE", key, left)


def _string(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    yield ("SET", key, client.get(key))


def _hash(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    fields = cast("dict[bytes, bytes]", client.hgetall(key))
    yield ("HSET", key, *(part for each in sorted(fields.items()) for part in each))


def _list(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    for each in cast("list[bytes]", client.lrange(key, 0, -1)):
        yield ("RPUSH", key, each)


def _sorted_set(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    members = cast("list[tuple[bytes, float]]", client.zrange(key, 0, -1, withscores=True))
    yield ("ZADD", key, *(part for member, score in members for part in (repr(score), member)))


def _stream(client: Any, key: bytes) -> Iterator[tuple[Any, ...]]:
    last = b"0-0"
    for last, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(key)):
        yield ("XADD", key, last, *(part for each in fields.items() for part in each))
    newest = cast("dict[str, bytes]", client.xinfo_stream(key))["last-generated-id"]
    if newest != last:  # newer entries were trimmed; this restores the stream's last id
        yield ("XADD", key, newest, "d", "")
        yield ("XDEL", key, newest)


_MAKERS: dict[str, Callable[[Any, bytes], Iterator[tuple[Any, ...]]]] = {
    "string": _string,
    "hash": _hash,
    "list": _list,
    "zset": _sorted_set,
    "stream": _stream,
}
