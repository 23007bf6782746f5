"""The Redis store with several processes, leases and lost connections, and the keys that it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from host_client.errors import ConfigurationError
from host_client.store import open_store
from host_client.store._redis import RedisStore
from host_client.store._redis_client import RedisClient
from host_client.store.base import LEASE_SECONDS, Additions, Note, NotOwnerError, StoreError
from tests.store.records import (
    ME,
    OTHER,
    WAIT_SECONDS,
    allow,
    append,
    close,
    created,
    live_until,
    numbers,
    stored,
    texts,
    told,
)
from tests.support.redis import RedisServer, redis_server

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
async def stores(redis: RedisServer) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Return two stores on one Redis, as two processes have them."""
    one, two = RedisStore(redis.url), RedisStore(redis.url)
    await one.open()
    await two.open()
    yield one, two
    await one.close()
    await two.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Run a Redis for this test alone, which may stop it."""
    with redis_server(tmp_path) as server:
        yield server


# -- several processes --------------------------------------------------------------------------------


async def test_processes_share_logs_commands_and_what_is_live(stores: tuple[RedisStore, RedisStore]) -> None:
    one, two = stores
    state = await created(one)
    async with two.subscribe("s-1") as reader, one.subscribe("s-1") as owner:
        await append(one, state, 2)
        await told(reader, Note.EVENTS)
        assert await numbers(two) == [1, 2]
        assert await two.push("s-1", b"{}") == 1
        await told(owner, Note.COMMANDS)
        await one.publish("s-1", b"live")
        await live_until(reader, b"live")


async def test_fifty_deciders_in_two_processes_have_one_winner(stores: tuple[RedisStore, RedisStore]) -> None:
    await created(stores[0])
    async with asyncio.timeout(WAIT_SECONDS):
        answers = await asyncio.gather(
            *(stores[number % 2].decide("s-1", allow("r-1", f"person-{number}"), b"{}") for number in range(50))
        )
    assert sum(first is None for first in answers) == 1
    assert len(await stores[0].commands("s-1", 0)) == 1


async def test_only_one_of_many_takes_over(stores: tuple[RedisStore, RedisStore], redis: RedisServer) -> None:
    state = await append(stores[0], await created(stores[0]), 2)
    assert await stores[1].unfinished() == []
    assert not await stores[1].acquire("s-1", OTHER)
    redis.command("DEL", "sandspan:{s-1}:lease")  # as when the owner has not renewed its lease for LEASE_SECONDS
    assert await stores[1].unfinished() == ["s-1"]
    async with asyncio.timeout(WAIT_SECONDS):
        taken = await asyncio.gather(*(stores[1].acquire("s-1", f"{OTHER}-{number}") for number in range(20)))
    assert sum(taken) == 1
    assert await stores[0].renew(["s-1"], ME) == ["s-1"]
    with pytest.raises(NotOwnerError):
        await append(stores[0], state)
    assert await numbers(stores[1]) == [1, 2]


async def test_a_lease_ends_in_time_and_an_owner_nobody_replaced_stays_it(
    stores: tuple[RedisStore, RedisStore], redis: RedisServer
) -> None:
    state = await created(stores[0])
    assert 0 < int(redis.command("PTTL", "sandspan:{s-1}:lease")) <= LEASE_SECONDS * 1000
    redis.command("DEL", "sandspan:{s-1}:lease")
    await append(stores[0], state)
    assert await stores[0].renew(["s-1", "s-2"], ME) == ["s-2"]
    assert await stores[1].unfinished() == []
    assert 0 < int(redis.command("PTTL", "sandspan:{s-1}:lease")) <= LEASE_SECONDS * 1000


# -- connections --------------------------------------------------------------------------------------


async def test_a_lost_subscription_is_made_again_and_tells_all_that_they_may_have_missed_something(
    stores: tuple[RedisStore, RedisStore], redis: RedisServer
) -> None:
    await created(stores[0])
    async with AsyncExitStack() as stack:
        inboxes = [await stack.enter_async_context(stores[0].subscribe(f"s-{1 + n % 2}")) for n in range(4)]
        for _ in range(2):
            redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            for inbox in inboxes:
                await told(inbox, *Note)
        await stores[1].publish("s-1", b"live")
        await live_until(inboxes[0], b"live")


async def test_a_process_has_one_connection_for_all_subscriptions(
    stores: tuple[RedisStore, RedisStore], redis: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(WAIT_SECONDS):
            for number in range(100):
                await stack.enter_async_context(stores[0].subscribe(f"s-{number // 2}"))
        assert redis.command("CLIENT", "LIST", "TYPE", "pubsub").count("\n") == 0
        assert len(redis.command("PUBSUB", "CHANNELS").split()) == 50
    async with asyncio.timeout(WAIT_SECONDS):
        while redis.command("PUBSUB", "CHANNELS"):
            await stores[0].ping()


async def test_a_session_may_be_left_and_subscribed_to_again_at_once(stores: tuple[RedisStore, RedisStore]) -> None:
    async def look(number: int) -> None:
        async with stores[0].subscribe("s-1") as inbox:
            await stores[1].publish("s-1", b"%d" % number)
            await live_until(inbox, b"%d" % number)

    async with asyncio.timeout(WAIT_SECONDS):
        for number in range(50):
            await look(number)
        await asyncio.gather(*map(look, range(50, 100)))


async def test_killed_connections_lose_no_append_and_repeat_none(
    stores: tuple[RedisStore, RedisStore], redis: RedisServer
) -> None:
    state = await created(stores[0])
    more = Additions(spans=[b"span"], cost_usd=0.01, day="2999-12-31")
    for number in range(1, 21):
        if number % 4 == 0:
            redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        state = msgspec.structs.replace(state, last_event_id=number)
        await stores[0].append("s-1", ME, texts(number, number), state, more)
    assert await numbers(stores[0]) == list(range(1, 21))
    assert len([span async for span in stores[0].spans("s-1")]) == 20
    assert await stores[0].spent("acme", "2999-12-31") == 0.2


@asynccontextmanager
async def forgetful(redis: RedisServer) -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """Run a proxy of a Redis; yield its URL and an event that makes it drop the next answer and disconnect."""
    cut = asyncio.Event()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", redis.port)

        async def answer() -> None:
            while data := await there.read(65536):
                if cut.is_set():
                    cut.clear()
                    break
                writer.write(data)
            writer.close()

        task = asyncio.create_task(answer())
        while data := await reader.read(65536):
            back.write(data)
        back.close()
        await task

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", cut


async def test_what_was_done_and_whose_answer_was_lost_is_not_done_again(redis: RedisServer) -> None:
    more = Additions(spans=[b"span"])
    async with forgetful(redis) as (url, cut):
        store = RedisStore(url)
        await store.open()

        async def unanswered(act: Awaitable[T]) -> T:
            cut.set()
            found = await act
            assert not cut.is_set()
            return found

        # After their first use the scripts are loaded, so that each later call is one command.
        await append(store, await created(store, "s-0"), session_id="s-0")
        await store.decide("s-0", allow("r-1", "ada"), b"{}")
        await store.push("s-0", b"{}")
        state = await unanswered(created(store))
        state = await unanswered(append(store, state, 2))
        await unanswered(store.append("s-1", ME, (), msgspec.structs.replace(state, updated_at=5.0), more))
        assert await unanswered(store.decide("s-1", allow("r-1", "ada"), b"{}")) is None
        with pytest.raises(StoreError, match="cannot be used"):
            await unanswered(store.push("s-1", b"{}"))
        assert await numbers(store) == [1, 2]
        assert [span async for span in store.spans("s-1")] == [b"span"]
        assert len(await store.commands("s-1", 0)) == 2
        await store.close()


async def test_a_redis_that_is_away_fails_calls_and_works_again_once_it_is_back(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url)
    await store.open()
    await created(store)
    async with asyncio.timeout(WAIT_SECONDS), store.subscribe("s-1") as inbox:
        own_redis.stop()
        state = stored("s-1", last_event_id=1).state
        for act in (
            store.ping(),
            store.get("s-1"),
            store.append("s-1", ME, texts(1, 1), state),
            store.publish("s-1", b""),
        ):
            with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{own_redis.port} cannot be used"):
                await act
        own_redis.start()
        await told(inbox, *Note)
        await append(store, await created(store))
        await told(inbox, Note.EVENTS)
        assert await numbers(store) == [1]
    await store.close()


async def test_a_redis_that_hangs_fails_calls_in_time(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url, timeout=0.2)
    await store.open()
    await created(store)
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(StoreError, match=r"did not answer within 0\.2 s"):
                await store.get("s-1")
            with pytest.raises(StoreError, match="did not confirm a subscription"):
                async with store.subscribe("s-1"):
                    pass
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                assert await store.get("s-1") is not None
            except StoreError:
                continue
            break
        while True:
            try:
                async with store.subscribe("s-1") as inbox:
                    await store.publish("s-1", b"live")
                    await live_until(inbox, b"live")
            except StoreError:
                continue
            break
    await store.close()


async def test_a_full_redis_refuses_what_is_new_and_keeps_what_it_has(
    redis: RedisServer, stores: tuple[RedisStore, RedisStore]
) -> None:
    state = await append(stores[0], await created(stores[0]))
    redis.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreError, match=r"cannot be used.*maxmemory"):
            await append(stores[0], state)
        assert await numbers(stores[1]) == [1]
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")
    await append(stores[0], state)
    assert await numbers(stores[1]) == [1, 2]


# -- remaining keys ------------------------------------------------------------------------------------


async def test_a_forgotten_session_leaves_no_key(redis: RedisServer, stores: tuple[RedisStore, RedisStore]) -> None:
    store = stores[0]
    state = await append(store, await created(store), 3)
    await store.push("s-1", b"{}")
    await store.decide("s-1", allow("r-1", "ada"), b"{}")
    await store.append("s-1", ME, (), state, Additions(spans=[b"span"]))
    assert len(redis.command("KEYS", "sandspan:{s-1}:*").split()) == 6
    await close(store, "s-1", state, at=1.0)
    assert await store.expire(2.0) == 1
    assert redis.command("KEYS", "*") == "sandspan:{all}:version"


async def test_two_processes_forget_each_session_once(stores: tuple[RedisStore, RedisStore]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        for number in range(150):
            await close(stores[0], f"s-{number}", await created(stores[0], f"s-{number}"), at=1.0)
        forgotten = await asyncio.gather(*(stores[number % 2].expire(2.0) for number in range(6)))
    assert sum(forgotten) == 150
    assert await stores[0].page(None, status=None, limit=5, before=None) == ([], None)


async def test_counters_and_answers_expire_by_themselves(
    redis: RedisServer, stores: tuple[RedisStore, RedisStore]
) -> None:
    store = stores[0]
    state = await created(store)
    await store.append("s-1", ME, (), state, Additions(cost_usd=0.5, day="2026-01-01"))
    await store.count("acme", "turns", 60.0)
    await store.reserve("acme", "k:1 {}", "digest", 60.0)
    keys = [
        key
        for key in redis.command("KEYS", "sandspan:{tenant:acme}:*").split("\n")
        if not key.endswith((":open", ":sessions"))
    ]
    assert len(keys) == 3
    for key in keys:
        assert int(redis.command("PTTL", key)) > 0


async def test_tenants_with_odd_names_are_kept_apart(stores: tuple[RedisStore, RedisStore]) -> None:
    odd = ["a}:open", "a", "a:b", "{a}", "ü *"]
    for number, tenant in enumerate(odd):
        await created(stores[0], f"s-{number}", tenant)
    for number, tenant in enumerate(odd):
        found, _ = await stores[1].page(tenant, status=None, limit=10, before=None)
        assert [each.record.id for each in found] == [f"s-{number}"]


async def test_a_page_goes_on_beyond_what_is_fetched_at_once(stores: tuple[RedisStore, RedisStore]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        states = await asyncio.gather(*(created(stores[0], f"s-{number:03}") for number in range(450)))
        await close(stores[0], "s-000", states[0], at=1.0)
        found, before = await stores[1].page("acme", status=None, limit=300, before=None)
        rest, end = await stores[1].page("acme", status=None, limit=300, before=before)
        assert [each.record.id for each in found + rest] == [f"s-{number:03}" for number in reversed(range(450))]
        assert end is None
        closed, _ = await stores[1].page("acme", status="closed", limit=5, before=None)
    assert [each.record.id for each in closed] == ["s-000"]


# -- opening ------------------------------------------------------------------------------------------


async def test_one_of_a_newer_version_is_left_alone(redis: RedisServer) -> None:
    redis.command("SET", "sandspan:{all}:version", "2")
    with pytest.raises(StoreError, match="newer sandspan"):
        await RedisStore(redis.url).open()


async def test_one_that_forgets_when_it_is_full_is_told(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis.command("CONFIG", "SET", "maxmemory", "1gb")
    try:
        store = RedisStore(redis.url)
        await store.open()
        await store.close()
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")
        redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert "noeviction" in caplog.text


async def test_nobody_learns_the_password(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for url in (
        f"redis://ada:s3cret@127.0.0.1:{redis.port}/0",  # a wrong password
        "redis://ada:s3cret@127.0.0.1:1/0",  # connection refused
        "unix://ada:s3cret@/no/socket",
    ):
        store = open_store(url)
        assert isinstance(store, RedisStore)
        with pytest.raises(StoreError) as raised:
            await store.open()
        assert "s3cret" not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"
    for url in ("redis://ada:s3cret#@127.0.0.1:x/0", "redis://ada:s3cret@host:port/0"):
        with pytest.raises(ConfigurationError, match="percent-encoded") as told_:
            open_store(url)
        assert "s3cret" not in str(told_.value)


async def test_a_call_ends_cancelled_also_where_the_client_has_swallowed_it(redis: RedisServer) -> None:
    client = RedisClient(redis.url, 5.0)
    await client.open()
    asked = asyncio.Event()

    async def swallow(_: object) -> None:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):  # as `wait_for` of Python 3.11 may
            await asyncio.Event().wait()

    try:
        call = asyncio.create_task(client.guard(swallow, again=False))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.call("PING")
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("query", "lease"), [("", LEASE_SECONDS), ("?lease=5", 5.0), ("?lease=2.5&health_check_interval=0", 2.5)]
)
async def test_a_lease_is_given_with_the_address(redis: RedisServer, query: str, lease: float) -> None:
    store = open_store(f"{redis.url}{query}")
    await store.open()
    try:
        await created(store)
        assert store.lease_seconds == lease
        assert lease * 500 < int(redis.command("PTTL", "sandspan:{s-1}:lease")) <= lease * 1000
    finally:
        await store.close()


@pytest.mark.parametrize("lease", ["", "0", "0.5", "601", "nan", "soon"])
def test_a_lease_that_cannot_be_is_refused(lease: str) -> None:
    with pytest.raises(ConfigurationError, match="lease= takes 1 to 600 seconds") as raised:
        open_store(f"redis://ada:s3cret@localhost?lease={lease}")
    assert "s3cret" not in str(raised.value)


async def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"sandspan\[redis\]"):
        open_store("redis://localhost")
