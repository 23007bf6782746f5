"""A session's log writes the queued events in order, once, and only while its replica owns the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_runner.contract.protocol import AnyEvent, LogData, TextDeltaData, event_of
from host_client.client.mailbox import MAX_ITEMS
from host_client.service._events import AdoptedData
from host_client.service._feed import Feed, unpack
from host_client.service._log import SessionLog
from host_client.service._models import session_view
from host_client.store._sqlite import SqliteStore
from host_client.store.base import NotOwnerError, StoredSession, StoreError
from tests.server.flaky import Flaky
from tests.store.records import ME, OTHER, created, stored
from tests.support.metrics import result

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60.0


def said(number: int) -> AnyEvent:
    return event_of(LogData(stream="runner", text=str(number)), seq=number, ts=1.0, trace_id="1" * 32, span_id="1" * 16)


async def log_of(store: SqliteStore) -> SessionLog:
    await created(store)
    return SessionLog(store, ME, stored("s-1"), Feed())


async def kinds(store: SqliteStore) -> list[str]:
    return [entry.data.split(b'"')[3].decode() for entry in await store.read("s-1", 0)]


class Shared(Flaky):
    """A store that reports to be shared by several replicas."""

    shared = True


@pytest.fixture
async def flaky(tmp_path: Path) -> AsyncIterator[Flaky]:
    store = Flaky(tmp_path / "service.sqlite")
    await store.open()
    yield store
    await store.close()


async def test_what_the_agent_says_waits_until_it_is_known_where_it_is(store: SqliteStore) -> None:
    log = await log_of(store)
    log.offer(said(1), 10)
    await log.say(AdoptedData(reason="first", replica="r"))
    assert await kinds(store) == ["adopted"]
    log.offer(said(2), 10)
    log.finish()
    await log.drain()
    assert await kinds(store) == ["adopted", "log", "log"]
    assert (log.state.last_event_id, log.state.seen_seq) == (3, 2)


def ended(turn: int, cost_usd: float) -> AnyEvent:
    return event_of(result(cost_usd, turn), seq=turn, ts=1.0, trace_id="1" * 32, span_id="1" * 16)


async def test_costs_add_up_without_the_error_of_floats(store: SqliteStore) -> None:
    log = await log_of(store)
    for turn, cost in enumerate((0.1, 0.2), start=1):
        log.offer(ended(turn, cost), 10)
    log.finish()
    await log.drain()
    assert session_view(StoredSession(log.record, log.state), None).cost_usd == 0.3


async def until_held(store: Flaky) -> asyncio.Future[None]:
    while not store.held:  # noqa: ASYNC110 - the loop goes round, and no time passes
        await asyncio.sleep(0)
    return store.held.pop()


async def test_what_is_left_while_something_is_written_is_written_together(flaky: Flaky) -> None:
    log = await log_of(flaky)
    taking = asyncio.ensure_future(log.drain())
    flaky.holds = True
    log.offer(said(1), 10)
    async with asyncio.timeout(WAIT_SECONDS):
        first = await until_held(flaky)
        for number in range(2, 101):
            assert log.offer(said(number), 10)
            if number % 10 == 0:
                await asyncio.sleep(0)
        flaky.holds = False
        first.set_exception(StoreError("try again"))
        log.finish()
        await taking
    assert [entry.id for entry in await flaky.read("s-1", 0)] == list(range(1, 101))
    assert flaky.attempts == 3, "the first one twice, and all the others at once"


async def test_who_says_too_much_waits_for_room(flaky: Flaky) -> None:
    log = await log_of(flaky)
    for number in range(1, MAX_ITEMS + 1):
        assert log.offer(said(number), 1)
    assert not log.offer(said(MAX_ITEMS + 1), 1)
    waiting = asyncio.ensure_future(log.put(said(MAX_ITEMS + 1), 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    taking = asyncio.ensure_future(log.drain())
    async with asyncio.timeout(WAIT_SECONDS):
        await waiting
        log.finish()
        await taking
    assert log.state.last_event_id == MAX_ITEMS + 1


async def test_a_store_that_is_away_holds_up_and_loses_nothing(flaky: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    log = await log_of(flaky)
    flaky.fails = lambda: StoreError("it is away") if flaky.attempts < 3 else None
    taking = asyncio.ensure_future(log.drain())
    log.offer(said(1), 10)
    log.finish()
    async with asyncio.timeout(WAIT_SECONDS):
        await taking
    assert await kinds(flaky) == ["log"]
    assert (flaky.attempts, caplog.text.count("waits for the store: it is away")) == (3, 2)


async def test_who_leaves_does_not_wait_for_a_store_that_is_away(flaky: Flaky) -> None:
    log = await log_of(flaky)
    flaky.fails = lambda: StoreError("it is away")
    saying = asyncio.ensure_future(log.say(AdoptedData(reason="never", replica="r")))
    async with asyncio.timeout(WAIT_SECONDS):
        while not flaky.attempts:  # noqa: ASYNC110 - the loop goes round, and no time passes
            await asyncio.sleep(0)
        await log.leave()
        with pytest.raises(StoreError):
            await saying
    flaky.fails = lambda: None
    assert await kinds(flaky) == []
    with pytest.raises(NotOwnerError):
        await log.say(AdoptedData(reason="too late", replica="r"))
    assert log.offer(said(1), 10), "nobody waits for room that never comes"


async def test_who_leaves_waits_for_what_is_being_written_and_for_nothing_else(flaky: Flaky) -> None:
    log = await log_of(flaky)
    flaky.holds = True
    first = asyncio.ensure_future(log.say(AdoptedData(reason="first", replica="r")))
    async with asyncio.timeout(WAIT_SECONDS):
        written = await until_held(flaky)
        second = asyncio.ensure_future(log.say(AdoptedData(reason="second", replica="r")))
        taking = asyncio.ensure_future(log.drain())
        leaving = asyncio.ensure_future(log.leave())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not leaving.done()
        written.set_result(None)
        await leaving
        await first
        for waiting in (second, taking):
            with pytest.raises(NotOwnerError):
                await waiting
    assert log.state.last_event_id == 1
    assert flaky.attempts == 1


async def test_a_session_that_is_anothers_is_written_no_more(store: SqliteStore) -> None:
    log = await log_of(store)
    await store.release("s-1", ME)
    assert await store.acquire("s-1", OTHER)
    taking = asyncio.ensure_future(log.drain())
    log.offer(said(1), 10)
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(NotOwnerError):
            await taking
        with pytest.raises(NotOwnerError):
            await log.say(AdoptedData(reason="mine", replica="r"))
        await log.put(said(2), 10)
    assert log.is_lost
    assert await kinds(store) == []


async def test_who_waits_for_room_in_a_log_that_is_lost_waits_no_more(flaky: Flaky) -> None:
    log = await log_of(flaky)
    flaky.holds = True
    taking = asyncio.ensure_future(log.drain())
    assert log.offer(said(1), 1)
    async with asyncio.timeout(WAIT_SECONDS):
        written = await until_held(flaky)
        for number in range(2, MAX_ITEMS + 2):
            assert log.offer(said(number), 1)
        waiting = asyncio.ensure_future(log.put(said(MAX_ITEMS + 2), 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        written.set_exception(NotOwnerError("it is another's"))
        await waiting
        with pytest.raises(NotOwnerError):
            await taking


async def test_what_is_left_when_the_store_is_closed_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "service.sqlite")
    await store.open()
    log = await log_of(store)
    saying = asyncio.ensure_future(log.say(AdoptedData(reason="last", replica="r")))
    for _ in range(2):  # the event is queued and handed to the store, which waits to batch it
        await asyncio.sleep(0)
    await store.close()
    await saying
    await store.open()
    assert await kinds(store) == ["adopted"]
    await store.close()


async def test_what_cannot_be_written_ends_the_session_and_not_the_log(flaky: Flaky) -> None:
    log = await log_of(flaky)
    flaky.fails = lambda: ValueError("a forged value") if flaky.attempts == 1 else None
    taking = asyncio.ensure_future(log.drain())
    log.offer(said(1), 10)
    told = asyncio.ensure_future(log.say(AdoptedData(reason="in the same step", replica="r")))
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(ValueError, match="a forged value"):
            await taking
        assert log.offer(said(2), 10), "it is not taken: what comes after a hole must not hide it"
        await told
        await log.say(AdoptedData(reason="its end is told", replica="r"))
    assert await kinds(flaky) == ["adopted", "adopted"]
    assert log.state.seen_seq == 0


def word(text: str) -> AnyEvent:
    data = TextDeltaData(text=text, message_id="m")
    return event_of(data, seq=None, ts=1.0, trace_id="1" * 32, span_id="1" * 16)


async def test_live_text_is_passed_on_once_however_often_its_step_is_written(tmp_path: Path) -> None:
    store = Shared(tmp_path / "service.sqlite")
    await store.open()
    log = await log_of(store)
    store.fails = lambda: StoreError("it is full") if store.attempts < 4 else None
    taking = asyncio.ensure_future(log.drain())
    for event in (word("before"), said(1), word("after")):
        log.offer(event, 10)
    log.finish()
    async with asyncio.timeout(WAIT_SECONDS):
        await taking
    assert [unpack(data).after for data in store.published] == [0, 1]
    assert (store.attempts, await kinds(store)) == (4, ["log"])
    await store.close()


async def test_what_is_written_is_shown_before_the_live_text_after_it_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Shared(tmp_path / "service.sqlite")
    await store.open()
    log = await log_of(store)
    shown: list[int] = []

    async def publish(_: str, data: bytes) -> None:
        shown.append(log.state.last_event_id)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(store, "publish", publish)
    taking = asyncio.ensure_future(log.drain())
    for event in (said(1), word("after")):
        log.offer(event, 10)
    log.finish()
    async with asyncio.timeout(WAIT_SECONDS):
        await taking
    assert shown == [1]
    await log.say(AdoptedData(reason="the log goes on", replica="r"))
    await store.close()
