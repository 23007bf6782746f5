"""Several processes create tokens in one file, which contains no usable token."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from host_client.store import open_store, open_tokens
from host_client.store.tokens import digest_of, new_token

pytestmark = pytest.mark.anyio

PROCESSES = 4
EACH = 5


def add_many(path: str, name: str) -> None:
    """Create `EACH` tokens, as each of several processes does."""

    async def add() -> None:
        for n in range(EACH):
            store = open_tokens(path)
            await store.open()
            await store.add_token(new_token(f"{name}-{n}", "acme", "viewer")[1])
            await store.close()

    asyncio.run(add())


async def test_processes_that_make_the_file_at_once_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "service.sqlite")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_many, args=(path, f"p{n}")) for n in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    service = open_store(path)
    await service.open()
    found = await service.tokens()
    await service.close()
    assert {each.name for each in found} == {f"p{n}-{k}" for n in range(PROCESSES) for k in range(EACH)}


async def test_no_token_is_in_the_file(tmp_path: Path) -> None:
    plaintext, token = new_token("ada", "acme", "operator")
    store = open_store(str(tmp_path / "service.sqlite"))
    await store.open()
    await store.add_token(token)
    assert await store.find_token(digest_of(plaintext)) == token
    await store.close()
    files = [each for each in tmp_path.iterdir() if each.is_file()]  # noqa: ASYNC240 - a few small ones
    assert files
    assert not any(plaintext.encode() in each.read_bytes() for each in files)
