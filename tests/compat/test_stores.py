"""Today's code opens, reads and writes stores of f6f5305 without a conversion."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.compat.adapter import Additions, Decision, NotOwnerError, SessionState, Store, open_store
from tests.compat.contents import FAR_DAY, FAR_SECONDS, Json, contents_of
from tests.compat.files import IN_FLIGHT_KEY, REDIS, SQLITE, STORES, read_gzip, read_json, read_lines
from tests.compat.redis_dump import restore
from tests.support.redis import redis_server

pytestmark = pytest.mark.anyio

NEXT = "replica-2"


@pytest.fixture(params=["sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Open a copy of each recorded store with today's code."""
    if request.param == "sqlite":
        path = tmp_path / "service.sqlite"
        path.write_bytes(read_gzip(SQLITE))
        store = open_store(str(path))
        await store.open()
        yield store
        await store.close()
        return
    with redis_server(tmp_path) as server:
        restore(server, read_lines(REDIS))
        store = open_store(server.url)
        await store.open()
        yield store
        await store.close()


@pytest.fixture(scope="module")
def contents() -> Json:
    """Return the content that f6f5305 read from both stores."""
    return read_json(STORES)


def titled(contents: Json, title: str) -> Json:
    return next(each for each in contents["sessions"] if each["record"]["title"] == title)


async def test_all_that_an_old_store_holds_is_read_as_it_was_written(store: Store, contents: Json) -> None:
    assert await contents_of(store, contents) == {name: contents[name] for name in contents if name != "counts"}


async def test_old_sessions_are_listed_by_tenant_status_and_page(store: Store, contents: Json) -> None:
    sessions = [(each["record"], each["state"].get("status", "starting")) for each in contents["sessions"]]
    newest = sorted((record for record, _ in sessions), key=lambda record: -record["created_at"])

    async def pages(tenant: str | None, limit: int, status: Any = None) -> list[str]:
        found: list[str] = []
        before = None
        while not found or before is not None:
            page, before = await store.page(tenant, status=status, limit=limit, before=before)
            found += [each.record.id for each in page]
        return found

    assert await pages(None, 100) == [record["id"] for record in newest]
    for tenant in ("acme", "bolt"):
        assert await pages(tenant, 1) == [record["id"] for record in newest if record["tenant_id"] == tenant]
    for status in ("needs_you", "running", "idle", "closed", "failed"):
        wanted = [record["id"] for record in newest if (record, status) in sessions]
        assert await pages(None, 100, status) == wanted != []
    open_ones = [each.record.id for each in await store.open_sessions("acme")]
    assert open_ones == [titled(contents, title)["record"]["id"] for title in ("Wait for me", "Count slowly")]


async def test_old_sessions_are_taken_over_and_go_on_where_they_were(store: Store, contents: Json) -> None:
    unfinished = [each["record"]["id"] for each in contents["sessions"] if "closed_at" not in each["state"]]
    assert await store.unfinished() == unfinished
    old = titled(contents, "Wait for me")
    session_id, last = old["record"]["id"], old["state"]["last_event_id"]
    assert await store.acquire(session_id, NEXT)
    assert session_id not in await store.unfinished()
    stored = await store.get(session_id)
    assert stored is not None
    after = msgspec.structs.replace(stored.state, last_event_id=last + 1, turns=1)
    with pytest.raises(NotOwnerError):
        await store.append(session_id, "replica-1", [b'{"type":"log"}'], after)
    more = Additions(spans=[b"onew"], cost_usd=0.5, day=FAR_DAY)
    await store.append(session_id, NEXT, [b'{"type":"log"}'], after, more)
    entries = await store.read(session_id, last - 1)
    assert [(entry.id, entry.data) for entry in entries][1:] == [(last + 1, b'{"type":"log"}')]
    again = await store.get(session_id)
    assert again is not None
    assert again.state == after
    spans = [data async for data in store.spans(session_id)]
    assert spans == [*map(base64.b64decode, old["spans"]), b"onew"]
    (spent,) = [usd for tenant, _, usd in contents["spent"] if tenant == "acme"]
    assert await store.spent("acme", FAR_DAY) == pytest.approx(spent + 0.5, abs=1e-12)


async def test_what_waits_in_an_old_store_is_decided_once_and_what_was_decided_stays(
    store: Store, contents: Json
) -> None:
    old = titled(contents, "Wait for me")
    session_id = old["record"]["id"]
    (waiting,) = old["state"]["waiting"]
    mine = Decision(request_id=waiting["id"], decision="allow", decided_by="ada", decided_at=1_796_000_000.5)
    theirs = msgspec.structs.replace(mine, decision="deny", decided_by="grace")
    assert await store.decide(session_id, mine, b'{"type":"approval"}') is None
    assert await store.decide(session_id, theirs, b'{"type":"approval"}') == mine
    position = old["state"]["commands_done"] + 1
    assert [(each.position, each.data) for each in await store.commands(session_id, 0)] == [
        (position, b'{"type":"approval"}')
    ]
    for each in old["decisions"]:
        decided = msgspec.convert(each, Decision)
        late = msgspec.structs.replace(decided, decision="deny", decided_by="mallory")
        assert await store.decide(session_id, late, None) == decided


async def test_what_was_queued_for_a_dead_owner_is_carried_out_and_forgotten(store: Store, contents: Json) -> None:
    old = titled(contents, "Count slowly")
    session_id = old["record"]["id"]
    positions = [position for position, _ in old["commands"]]
    assert await store.push(session_id, b'{"type":"close"}') == positions[-1] + 1
    assert await store.acquire(session_id, NEXT)
    stored = await store.get(session_id)
    assert stored is not None
    done: SessionState = msgspec.structs.replace(stored.state, commands_done=positions[-1])
    await store.append(session_id, NEXT, (), done)
    assert [each.position for each in await store.commands(session_id, 0)] == [positions[-1] + 1]


async def test_old_keys_and_counts_hold(store: Store, contents: Json) -> None:
    (in_flight,) = [each for each in contents["remembered"] if each["key"] == IN_FLIGHT_KEY]
    await store.answer("acme", IN_FLIGHT_KEY, in_flight["digest"], b"done", FAR_SECONDS)
    there = await store.reserve("acme", IN_FLIGHT_KEY, "another", FAR_SECONDS)
    assert (there.digest, there.answer) == (in_flight["digest"], b"done") if there else False
    for tenant, what, times in contents["counts"]:
        assert await store.count(tenant, what, FAR_SECONDS) == times + 1


async def test_old_logs_are_trimmed_and_old_sessions_forgotten(store: Store, contents: Json) -> None:
    old = titled(contents, "Mend the parser")
    session_id, last = old["record"]["id"], old["state"]["last_event_id"]
    await store.trim(session_id, 2)
    assert (await store.oldest(session_id), len(await store.read(session_id, 0))) == (last - 1, 2)
    closed = [each for each in contents["sessions"] if "closed_at" in each["state"]]
    assert await store.expire(max(each["state"]["closed_at"] for each in closed) + 1) == len(closed) == 2
    assert await store.get(session_id) is None
    left, _ = await store.page(None, status=None, limit=100, before=None)
    assert len(left) == len(contents["sessions"]) - 2


async def test_old_tokens_are_found_and_revoked(store: Store, contents: Json) -> None:
    for each in contents["tokens"]:
        found = await store.find_token(each["digest"])
        assert found is not None
        assert msgspec.to_builtins(found) == each
        assert await store.remove_token(each["id"])
        assert await store.find_token(each["digest"]) is None
    assert await store.tokens() == []
