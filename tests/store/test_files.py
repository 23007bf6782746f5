"""Files of tenants in both stores: their content, their time and the room that they may take."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from host_client.store import Store, open_store
from host_client.store._sqlite import SqliteStore
from host_client.store.base import FILE_OVERHEAD, FilesFullError, StoredFile
from tests.store.records import WAIT_SECONDS
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio

PICTURE = StoredFile(data=b"\x89PNG\r\n\x1a\n\x00\xff", media_type="image/png", name="ü 😀.png")
ROOM = 3 * (100 + FILE_OVERHEAD)


def of(size: int) -> StoredFile:
    return StoredFile(data=b"x" * size, media_type="text/plain")


async def put(store: Store, file_id: str, file: StoredFile, tenant: str = "acme", seconds: float = 600.0) -> bool:
    """Store a file where a tenant has the room `ROOM`; return False if it is full."""
    try:
        await store.put_file(tenant, file_id, file, seconds, most_bytes=ROOM)
    except FilesFullError:
        return False
    return True


async def gone(store: Store, file_id: str) -> None:
    """Wait until a file's time is over."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await store.file("acme", file_id) is not None:
            pass


async def test_a_file_comes_back_as_it_was_for_its_tenant_alone(store: Store) -> None:
    assert await put(store, "f-1", PICTURE)
    assert await store.file("acme", "f-1") == PICTURE
    assert await store.file("other", "f-1") is None
    assert await store.file("acme", "f-2") is None
    await store.remove_files("other", ["f-1"])
    assert await store.file("acme", "f-1") == PICTURE
    await store.remove_files("acme", ["f-1", "f-2"])
    assert await store.file("acme", "f-1") is None


async def test_a_file_of_ten_mebibytes_is_stored(store: Store) -> None:
    large = StoredFile(data=bytes(range(256)) * 4096 * 10, media_type="application/pdf")
    await store.put_file("acme", "large", large, 600.0, most_bytes=None)
    assert await store.file("acme", "large") == large


async def test_a_tenants_files_take_no_more_room_than_they_may(store: Store) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        stored = await asyncio.gather(*(put(store, f"f-{number}", of(100)) for number in range(10)))
    assert sum(stored) == 3
    assert await put(store, "f-1", of(100), "other")
    kept = stored.index(True)
    assert await put(store, f"f-{kept}", of(100))  # the same file again takes no further room
    assert not await put(store, f"f-{kept}", of(101))
    assert (await store.file("acme", f"f-{kept}")) == of(100)
    await store.remove_files("acme", [f"f-{kept}"])
    assert await put(store, "f-100", of(99))
    assert not await put(store, "f-101", of(0))


async def test_a_file_leaves_its_room_when_its_time_is_over(store: Store) -> None:
    assert await put(store, "long", of(100))
    for number in range(2):
        assert await put(store, f"short-{number}", of(100), seconds=0.3)
    for number in range(2):
        await gone(store, f"short-{number}")
    assert await put(store, "next-0", of(100))
    assert await put(store, "next-1", of(100))
    assert not await put(store, "next-2", of(100))
    assert await store.file("acme", "long") == of(100)


async def test_a_database_of_an_earlier_version_takes_files(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "service.sqlite")
    await store.open()
    await store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE files")
    connection.close()
    await store.open()
    assert await put(store, "f-1", PICTURE)
    assert await store.file("acme", "f-1") == PICTURE
    await store.close()


async def test_files_whose_time_is_over_are_deleted_from_the_database(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    store = SqliteStore(tmp_path / "service.sqlite", clock=lambda: now)
    await store.open()
    for number in range(45):
        await store.put_file("acme", f"f-{number}", of(10), 60.0, most_bytes=None)
    await store.put_file("acme", "kept", of(10), 120.0, most_bytes=None)
    now += 60
    await store.expire(0.0)
    await store.close()
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT id FROM files").fetchall() == [("kept",)]
    connection.close()


@pytest.mark.integration
async def test_a_redis_keeps_nothing_of_files_whose_time_is_over(redis: RedisServer) -> None:
    store = open_store(redis.url)
    await store.open()
    await put(store, "f-1", of(10), seconds=0.2)
    await put(store, "f-2", of(10), seconds=0.1)
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(redis.command, "KEYS", "*file*"):
            pass
    await store.close()
