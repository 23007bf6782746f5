"""Fixtures with the stores on which every test of the conformance suite runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host_client.store import Store, open_store
from tests.support.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def redis_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a Redis for all tests of this process; `redis` empties it for each test."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(redis_of_all: RedisServer) -> RedisServer:
    redis_of_all.command("FLUSHALL")
    return redis_of_all


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the location of the test's own store in the form of the ``--store`` option."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        return server.url
    return str(tmp_path / "service.sqlite")


@pytest.fixture
async def store(place: str) -> AsyncIterator[Store]:
    store = open_store(place)
    await store.open()
    yield store
    await store.close()
