"""The behaviour that all stores share, on a real file and on a real Redis."""

from __future__ import annotations

import asyncio
import base64

import msgspec
import pytest

from host_client.store import Store, open_store, open_tokens
from host_client.store import _redis as redis
from host_client.store import _sqlite as sqlite
from host_client.store._fanout import MAX_LIVE
from host_client.store.base import (
    Additions,
    BadCursorError,
    Decision,
    IdempotentAnswer,
    Note,
    NotOwnerError,
    Queued,
    SandboxRef,
    StoreError,
    Token,
    TooManyError,
    UnknownSessionError,
    WaitingRequest,
)
from tests.store.records import (
    ME,
    OTHER,
    WAIT_SECONDS,
    allow,
    append,
    appending_process,
    close,
    created,
    live_until,
    numbers,
    stored,
    texts,
    told,
)

pytestmark = pytest.mark.anyio


# -- sessions -----------------------------------------------------------------------------------------


async def test_a_session_comes_back_as_it_was_kept(store: Store) -> None:
    session = stored(
        "s-1",
        status="needs_you",
        closed_at=None,
        cost_usd=0.1 + 0.2,
        sandbox=SandboxRef(id="i-1", kind="local"),
        whereabouts={"pid": 7},
        waiting=(WaitingRequest(id="r-1", kind="approval", tool_name="Bash", expires_at=1.5, input_sha256="0" * 64),),
    )
    await store.create(session, ME, (b'{"type":"prompt"}', b"{}"), most_open=None)
    assert await store.get("s-1") == session
    assert await store.commands("s-1", 0) == [Queued(1, b'{"type":"prompt"}'), Queued(2, b"{}")]
    assert await store.get("s-2") is None


async def test_a_session_is_not_made_twice(store: Store) -> None:
    await created(store)
    with pytest.raises(StoreError, match="s-1"):
        await store.create(stored("s-1", "other"), OTHER, (b"{}",), most_open=None)
    assert await store.get("s-1") == stored("s-1")
    assert await store.commands("s-1", 0) == []


async def test_a_tenant_has_no_more_open_sessions_than_it_may(store: Store) -> None:
    async def create(number: int) -> bool:
        try:
            await store.create(stored(f"s-{number}"), ME, (), most_open=5)
        except TooManyError:
            return False
        return True

    async with asyncio.timeout(WAIT_SECONDS):
        made = await asyncio.gather(*map(create, range(20)))
    assert sum(made) == 5
    await store.create(stored("o-1", "other"), ME, (), most_open=1)
    first = made.index(True)
    await close(store, f"s-{first}", stored(f"s-{first}").state, at=1.0)
    assert await create(100)
    assert not await create(101)


async def test_pages_are_newest_first_and_meet_without_gap(store: Store) -> None:
    times = [100.0, 100.0, 100.0, 101.5, 99.25, 1e9 + 0.123456]
    for number, at in enumerate(times):
        await created(store, f"s-{number}", created_at=at)
    pages: list[list[str]] = []
    before: str | None = None
    async with asyncio.timeout(WAIT_SECONDS):
        while not pages or before is not None:
            found, before = await store.page("acme", status=None, limit=2, before=before)
            pages.append([each.record.id for each in found])
    assert pages == [["s-5", "s-3"], ["s-2", "s-1"], ["s-0", "s-4"]]


async def test_a_page_is_not_moved_by_sessions_that_come_meanwhile(store: Store) -> None:
    for number in range(4):
        await created(store, f"s-{number}", created_at=float(number))
    _, before = await store.page("acme", status=None, limit=2, before=None)
    await created(store, "s-4", created_at=4.0)
    found, end = await store.page("acme", status=None, limit=2, before=before)
    assert [each.record.id for each in found] == ["s-1", "s-0"]
    assert end is None


async def test_a_page_shows_a_tenant_nobody_elses(store: Store) -> None:
    for number in range(4):
        await created(store, f"a-{number}", "acme", created_at=float(number))
        await created(store, f"b-{number}", "bolt", created_at=float(number) + 0.5)
    acme, _ = await store.page("acme", status=None, limit=10, before=None)
    assert [each.record.id for each in acme] == ["a-3", "a-2", "a-1", "a-0"]
    everybody, _ = await store.page(None, status=None, limit=3, before=None)
    assert [each.record.id for each in everybody] == ["b-3", "a-3", "b-2"]
    assert await store.page("a*", status=None, limit=3, before=None) == ([], None)


async def test_a_page_of_one_status_follows_it(store: Store) -> None:
    states = {f"s-{number}": await created(store, f"s-{number}", created_at=float(number)) for number in range(6)}
    await close(store, "s-1", states["s-1"], at=10.0)
    await close(store, "s-3", states["s-3"], at=10.0, status="failed")
    await store.append("s-4", ME, (), msgspec.structs.replace(states["s-4"], status="running"))

    async def ids(status: str, limit: int = 2) -> list[str]:
        found: list[str] = []
        before: str | None = None
        while not found or before is not None:
            page, before = await store.page("acme", status=status, limit=limit, before=before)  # pyright: ignore[reportArgumentType]
            assert len(page) <= limit
            found += [each.record.id for each in page]
        return found

    async with asyncio.timeout(WAIT_SECONDS):
        assert await ids("starting") == ["s-5", "s-2", "s-0"]
        assert await ids("starting", 1) == ["s-5", "s-2", "s-0"]
        assert await ids("closed") == ["s-1"]
        assert await ids("failed") == ["s-3"]
        assert await ids("running") == ["s-4"]


@pytest.mark.parametrize("cursor", ["", "!", "AAAA", "bm9uZQ", base64.urlsafe_b64encode(b"nan s-1").decode()])
async def test_a_cursor_of_no_page_is_told(store: Store, cursor: str) -> None:
    with pytest.raises(BadCursorError, match="cursor"):
        await store.page("acme", status=None, limit=2, before=cursor)


# -- ownership ----------------------------------------------------------------------------------------


async def test_an_owner_keeps_others_out_until_it_lets_go(store: Store) -> None:
    await created(store)
    assert await store.acquire("s-1", ME)
    assert not await store.acquire("s-1", OTHER)
    assert await store.renew(["s-1"], ME) == []
    await store.release("s-1", OTHER)
    assert not await store.acquire("s-1", OTHER)
    assert await store.unfinished() == []
    await store.release("s-1", ME)
    assert await store.unfinished() == ["s-1"]
    with pytest.raises(NotOwnerError):
        await append(store, stored("s-1").state)
    assert await store.acquire("s-1", OTHER)
    assert not await store.acquire("s-1", ME)


async def test_what_is_not_there_is_nobodys(store: Store) -> None:
    assert not await store.acquire("s-1", ME)
    with pytest.raises(NotOwnerError):
        await store.append("s-1", ME, texts(1, 1), stored("s-1", last_event_id=1).state)
    for act in (store.push("s-1", b"{}"), store.decide("s-1", allow("r-1", "ada"), b"{}")):
        with pytest.raises(UnknownSessionError):
            await act
    await store.release("s-1", ME)
    await store.trim("s-1", 1)
    assert await store.read("s-1", 0) == []
    assert await store.oldest("s-1") == 1
    assert await store.commands("s-1", 0) == []
    assert await store.decision("s-1", "r-1") is None
    assert [span async for span in store.spans("s-1")] == []


async def test_an_owner_that_was_replaced_writes_nothing(store: Store) -> None:
    state = await append(store, await created(store), 2)
    await store.release("s-1", ME)
    assert await store.acquire("s-1", OTHER)
    late = msgspec.structs.replace(state, last_event_id=3, status="failed")
    more = Additions(spans=[b"span"], decisions=[allow("r-1", "ada")], cost_usd=1.0, day="2026-01-01")
    with pytest.raises(NotOwnerError):
        await store.append("s-1", ME, texts(3, 3), late, more)
    assert await numbers(store) == [1, 2]
    assert await store.get("s-1") == stored("s-1", last_event_id=2)
    assert [span async for span in store.spans("s-1")] == []
    assert await store.decision("s-1", "r-1") is None
    assert await store.spent("acme", "2026-01-01") == 0.0
    await store.append("s-1", OTHER, texts(3, 3), msgspec.structs.replace(state, last_event_id=3))
    assert await numbers(store) == [1, 2, 3]


@pytest.mark.parametrize("last", [2, 3, 4, 6])
async def test_numbers_that_do_not_go_on_are_not_written(store: Store, last: int) -> None:
    state = await append(store, await created(store), 3)
    with pytest.raises(NotOwnerError):
        await store.append("s-1", ME, texts(last - 2, last - 1), msgspec.structs.replace(state, last_event_id=last))
    assert await numbers(store) == [1, 2, 3]


async def test_appends_of_many_sessions_at_once_are_kept_each_in_order(store: Store) -> None:
    async def write(session_id: str) -> None:
        state = await created(store, session_id)
        for _ in range(10):
            state = await append(store, state, session_id=session_id)

    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*(write(f"s-{number}") for number in range(10)))
    assert [await numbers(store, f"s-{number}") for number in range(10)] == [list(range(1, 11))] * 10


async def test_the_same_events_written_again_are_kept_once(store: Store) -> None:
    await created(store)
    state = stored("s-1", last_event_id=2, cost_usd=0.5).state
    more = Additions(spans=[b"span"], cost_usd=0.5, day="2999-12-31")
    await store.append("s-1", ME, texts(1, 2), state, more)
    await store.append("s-1", ME, texts(1, 2), state, more)
    assert await numbers(store) == [1, 2]
    assert [span async for span in store.spans("s-1")] == [b"span"]
    assert await store.spent("acme", "2999-12-31") == 0.5


# -- events, spans and costs --------------------------------------------------------------------------


async def test_a_log_has_no_holes_however_it_is_read(store: Store) -> None:
    state = await created(store)
    for count in (1, 7, 0, 30, 2):
        state = await append(store, state, count)
    assert await numbers(store) == list(range(1, 41))
    assert await numbers(store, after=38) == [39, 40]
    assert await numbers(store, after=40) == []
    assert [entry.id for entry in await store.read("s-1", 3, limit=4)] == [4, 5, 6, 7]
    assert [entry.id for entry in await store.read("s-1", 3, max_bytes=18)] == [4, 5]
    assert [entry.id for entry in await store.read("s-1", 3, max_bytes=1)] == [4]


async def test_events_are_kept_byte_by_byte(store: Store) -> None:
    events = [b'"\xe2\x80\xa8 \xf0\x9f\x98\x80"', b"\x00\r\n", b"x" * 1_000_000]
    await created(store)
    await store.append("s-1", ME, events, stored("s-1", last_event_id=3).state)
    assert [entry.data for entry in await store.read("s-1", 0)] == events


async def test_a_hundred_sessions_append_at_once(store: Store) -> None:
    names = [f"s-{number}" for number in range(100)]

    async def write(name: str) -> None:
        state = await created(store, name)
        for _ in range(3):
            state = await append(store, state, session_id=name)

    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*map(write, names))
    for name in names:
        assert await numbers(store, name) == [1, 2, 3]


async def test_a_tenants_open_sessions_are_all_found(store: Store) -> None:
    assert await store.open_sessions("acme") == []
    for name in ("s-1", "s-2", "s-3"):
        await created(store, name)
    await created(store, "s-4", "other")
    await close(store, "s-2", stored("s-2").state, at=1.0)
    assert await store.open_sessions("acme") == [stored("s-1"), stored("s-3")]


async def test_what_comes_with_events_is_kept_with_them(store: Store) -> None:
    state = await created(store)
    assert await store.decide("s-1", allow("r-1", "ada"), None) is None
    timeout = Decision(request_id="r-2", decision="timeout", decided_by=None, decided_at=2.0)
    late = Decision(request_id="r-1", decision="timeout", decided_by=None, decided_at=2.0)
    spans = [b"%d" % number for number in range(250)]
    more = Additions(spans=spans, decisions=[late, timeout], cost_usd=0.25, day="2026-01-01")
    await store.append("s-1", ME, (), state, more)
    assert [span async for span in store.spans("s-1")] == spans
    assert await store.decision("s-1", "r-1") == late  # the runner's own report replaces the earlier decision
    assert await store.decision("s-1", "r-2") == timeout
    assert await store.spent("acme", "2026-01-01") == 0.25


async def test_a_sandboxs_spans_are_kept_up_to_a_size_and_the_hosts_own_beyond_it(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite, redis):
        monkeypatch.setattr(module, "MAX_SPANS_BYTES", 10)
    state = await created(store)
    for spans in ([b"r1234", b"r123"], [b"r2"], [b"r", b"r3", b"own"], [b"r4"]):
        await store.append("s-1", ME, (), state, Additions(spans=spans))
    assert [span async for span in store.spans("s-1")] == [b"r1234", b"r123", b"r", b"own"]
    assert caplog.text.count("session s-1: further spans of its sandbox are not stored") == 1


async def test_a_trimmed_log_says_where_it_begins(store: Store) -> None:
    state = await created(store)
    assert await store.oldest("s-1") == 1
    state = await append(store, state, 10)
    await store.trim("s-1", 3)
    assert await store.oldest("s-1") == 8
    assert await numbers(store) == [8, 9, 10]
    await store.trim("s-1", 5)
    assert await numbers(store) == [8, 9, 10]
    await store.trim("s-1", 0)
    assert await store.oldest("s-1") == 11
    await append(store, state)
    assert await numbers(store) == [11]


# -- commands and decisions ---------------------------------------------------------------------------


async def test_commands_are_numbered_and_forgotten_once_done(store: Store) -> None:
    state = await created(store)
    async with asyncio.timeout(WAIT_SECONDS):
        positions = await asyncio.gather(*(store.push("s-1", b"%d" % number) for number in range(20)))
    assert sorted(positions) == list(range(1, 21))
    queued = await store.commands("s-1", 0)
    assert sorted(queued) == sorted(Queued(at, b"%d" % number) for number, at in enumerate(positions))
    assert await store.commands("s-1", 18) == queued[18:]
    await store.append("s-1", ME, (), msgspec.structs.replace(state, commands_done=20))
    assert await store.commands("s-1", 0) == []
    assert await store.push("s-1", b"{}") == 21


async def test_fifty_deciders_have_one_winner(store: Store) -> None:
    await created(store)
    decisions = [allow("r-1", f"person-{number}") for number in range(50)]
    async with asyncio.timeout(WAIT_SECONDS):
        answers = await asyncio.gather(
            *(store.decide("s-1", each, each.decided_by.encode()) for each in decisions if each.decided_by)
        )
    (winner,) = [decision for decision, first in zip(decisions, answers, strict=True) if first is None]
    assert {first for first in answers if first is not None} == {winner}
    assert winner.decided_by is not None
    assert await store.commands("s-1", 0) == [Queued(1, winner.decided_by.encode())]
    assert await store.decision("s-1", "r-1") == winner
    assert await store.decision("s-1", "r-2") is None
    assert await store.decide("s-1", allow("r-2", "ada"), None) is None


# -- notes and live events ----------------------------------------------------------------------------


async def test_subscribers_are_told_of_events_commands_and_what_is_live(store: Store) -> None:
    state = await created(store)
    async with store.subscribe("s-1") as one, store.subscribe("s-1") as two, store.subscribe("s-2") as other:
        await append(store, state)
        await told(one, Note.EVENTS)
        await told(two, Note.EVENTS)
        await store.push("s-1", b"{}")
        await told(one, Note.COMMANDS)
        await store.decide("s-1", allow("r-1", "ada"), b"{}")
        await told(one, Note.COMMANDS)
        await store.publish("s-1", b"live \x00 1")
        await store.publish("s-2", b"live 2")
        assert (await live_until(one, b"live \x00 1"))[-1] == b"live \x00 1"
        assert set(await live_until(two, b"live \x00 1")) == {Note.COMMANDS, b"live \x00 1"}
        assert await live_until(other, b"live 2") == [b"live 2"]


async def test_a_subscriber_may_want_one_kind_of_note_alone(store: Store) -> None:
    state = await created(store)
    async with store.subscribe("s-1", only=Note.COMMANDS) as some, store.subscribe("s-1") as every:
        await append(store, state)
        await told(every, Note.EVENTS)
        await store.publish("s-1", b"live")
        await live_until(every, b"live")
        await store.push("s-1", b"{}")
        async with asyncio.timeout(WAIT_SECONDS):
            assert await anext(some) is Note.COMMANDS


async def test_a_slow_subscriber_misses_the_oldest_live_events_and_no_note(store: Store) -> None:
    state = await created(store)
    async with store.subscribe("s-1") as slow, store.subscribe("s-1") as fast:
        state = await append(store, state)
        for number in range(MAX_LIVE):
            await store.publish("s-1", b"%d" % number)
        await store.push("s-1", b"{}")
        for number in range(MAX_LIVE, 3 * MAX_LIVE):
            await store.publish("s-1", b"%d" % number)
            await live_until(fast, b"%d" % number)
        found = await live_until(slow, b"%d" % (3 * MAX_LIVE - 1))
    assert set(found[:2]) == {Note.EVENTS, Note.COMMANDS}
    assert found[2:] == [b"%d" % number for number in range(2 * MAX_LIVE, 3 * MAX_LIVE)]


async def test_subscribers_end_with_the_store(store: Store) -> None:
    await created(store)
    async with store.subscribe("s-1") as inbox:
        await store.close()
        async with asyncio.timeout(WAIT_SECONDS):
            assert [item async for item in inbox] == []
    with pytest.raises(StoreError, match="closed"):
        await store.ping()


# -- limits -------------------------------------------------------------------------------------------


async def test_an_idempotency_key_is_reserved_once_and_remembers_its_answer(store: Store) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        found = await asyncio.gather(*(store.reserve("acme", "k-1", "digest", 60.0) for _ in range(10)))
    assert sorted(found, key=lambda each: each is not None) == [None] + [IdempotentAnswer("digest", None)] * 9
    await store.answer("acme", "k-1", "another", b"wrong", 60.0)
    await store.answer("acme", "k-1", "digest", b'{"id":"s-1"}', 60.0)
    assert await store.reserve("acme", "k-1", "another", 60.0) == IdempotentAnswer("digest", b'{"id":"s-1"}')
    assert await store.reserve("other", "k-1", "digest", 60.0) is None


async def test_a_freed_key_is_reserved_again(store: Store) -> None:
    await store.reserve("acme", "k-1", "digest", 60.0)
    await store.answer("acme", "k-1", "another", None, 60.0)
    assert await store.reserve("acme", "k-1", "digest", 60.0) == IdempotentAnswer("digest", None)
    await store.answer("acme", "k-1", "digest", None, 60.0)
    assert await store.reserve("acme", "k-1", "another", 60.0) is None


async def test_a_reserved_key_is_freed_in_time(store: Store) -> None:
    await store.reserve("acme", "k-1", "digest", 0.05)
    async with asyncio.timeout(WAIT_SECONDS):
        while await store.reserve("acme", "k-1", "another", 60.0) is not None:
            pass
    await store.answer("acme", "k-1", "digest", b"late", 60.0)
    assert await store.reserve("acme", "k-1", "third", 60.0) == IdempotentAnswer("another", None)


async def test_counters_count_by_tenant_and_kind_in_their_window(store: Store) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        found = await asyncio.gather(*(store.count("acme", "turns", 1e9) for _ in range(30)))
    assert sorted(found) == list(range(1, 31))
    assert await store.count("acme", "sessions", 1e9) == 1
    assert await store.count("other", "turns", 1e9) == 1
    async with asyncio.timeout(WAIT_SECONDS):
        while await store.count("acme", "short", 0.05) < 2:
            pass
        while await store.count("acme", "short", 0.05) > 1:
            pass


async def test_ten_thousand_costs_add_up_to_the_cent(store: Store) -> None:
    state = await created(store)
    more = Additions(cost_usd=0.1234567, day="2999-12-31")

    async def spend(count: int) -> None:
        for _ in range(count):
            await store.append("s-1", ME, (), state, more)

    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*(spend(100) for _ in range(100)))
    assert await store.spent("acme", "2999-12-31") == 1234.567
    assert await store.spent("acme", "2999-12-30") == 0.0
    assert await store.spent("other", "2999-12-31") == 0.0


# -- tokens -------------------------------------------------------------------------------------------


async def test_tokens_are_found_by_digest_until_they_are_removed(store: Store) -> None:
    ada = Token(id="t-1", digest="1" * 64, name="ada", tenant_id="acme", role="operator", created_at=1.0)
    bob = Token(id="t-2", digest="2" * 64, name="bob", tenant_id="bolt", role="viewer", created_at=2.0, expires_at=3.5)
    await store.add_token(bob)
    await store.add_token(ada)
    assert await store.tokens() == [ada, bob]
    assert await store.find_token("2" * 64) == bob
    assert await store.find_token("3" * 64) is None
    assert await store.remove_token("t-2")
    assert not await store.remove_token("t-2")
    assert await store.find_token("2" * 64) is None
    assert await store.tokens() == [ada]


async def test_tokens_are_looked_after_beside_a_service_that_runs(place: str, store: Store) -> None:
    ada = Token(id="t-1", digest="1" * 64, name="ada", tenant_id="acme", role="operator", created_at=1.0)
    beside = open_tokens(place)
    await beside.open()
    await beside.add_token(ada)
    assert await store.find_token("1" * 64) == ada
    await beside.remove_token("t-1")
    assert await store.tokens() == []
    await beside.close()


# -- retention ----------------------------------------------------------------------------------------


async def test_sessions_closed_before_a_time_are_forgotten_whole(store: Store) -> None:
    for number in range(45):
        state = await append(store, await created(store, f"s-{number}"), session_id=f"s-{number}")
        await store.push(f"s-{number}", b"{}")
        await store.decide(f"s-{number}", allow("r-1", "ada"), None)
        await store.append(f"s-{number}", ME, (), state, Additions(spans=[b"span"]))
        if number:
            await close(store, f"s-{number}", state, at=float(number))
    assert await store.expire(43.0) == 42
    assert await store.expire(43.0) == 0
    found, _ = await store.page("acme", status=None, limit=100, before=None)
    assert sorted(each.record.id for each in found) == ["s-0", "s-43", "s-44"]
    assert await numbers(store, "s-43") == [1]
    assert await store.get("s-1") is None
    assert await store.read("s-1", 0) == []
    assert await store.commands("s-1", 0) == []
    assert await store.decision("s-1", "r-1") is None
    assert [span async for span in store.spans("s-1")] == []
    assert await store.unfinished() == []


# -- killed processes ---------------------------------------------------------------------------------


async def test_what_was_kept_is_there_for_the_next_process(place: str) -> None:
    first = open_store(place)
    await first.open()
    await append(first, await created(first), 3)
    await first.push("s-1", b"{}")
    await first.release("s-1", ME)
    await first.close()
    second = open_store(place)
    await second.open()
    assert await numbers(second) == [1, 2, 3]
    assert await second.commands("s-1", 0) == [Queued(1, b"{}")]
    assert await second.unfinished() == ["s-1"]
    await second.close()


async def test_what_was_kept_survives_kill_9(place: str) -> None:
    with appending_process(place) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(50)]
        child.kill()
        said += map(int, child.stdout.read().split(b"\n")[:-1])
    store = open_store(place)
    await store.open()
    kept = await numbers(store)
    found = await store.get("s-1")
    assert found is not None and kept == list(range(1, found.state.last_event_id + 1))
    assert kept[: len(said)] == said
    await store.close()
