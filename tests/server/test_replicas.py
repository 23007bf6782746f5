"""Several replicas share one Redis: each serves any reader and decision, and may be killed or paused."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import new_e2b_service
from tests.server.scripts import TWO_APPROVALS
from tests.support.hosts import E2BLab
from tests.support.redis import RedisServer, redis_server
from tests.support.runs import WAIT_SECONDS
from tests.support.service import (
    Sent,
    Served,
    ServiceLab,
    allow,
    created,
    numbers,
    rest,
    spans_of,
    stream,
    until,
    whole,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

SOON = 2
"""Length of a lease in seconds in tests that wait until a replica counts as dead."""

LONG_TEXT = """
conversations:
  main:
    replies:
      - {text: Hello.}
      - text: One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen.
        chunk: 4
        pace: 0.05
"""

APPROVALS_THEN_HANGS = """
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: touch made}}]
      - tools: [{name: Bash, input: {command: touch other}}]
      - {text: Done.}
      - {text: "I think.", pace: 0.001, delay: 600}
"""


@dataclass
class Replicas:
    """Replicas of a service with one Redis and one stand-in of E2B."""

    lab: ServiceLab
    e2b: E2BLab
    redis: RedisServer

    def start(self, lease: int | None = None) -> Served:
        store = self.redis.url if lease is None else f"{self.redis.url}?lease={lease}"
        return self.lab.start("--sandbox", "e2b", "--store", store)

    @property
    def sandboxes(self) -> list[str]:
        """Return the state of each sandbox."""
        return [sandbox.state for sandbox in self.e2b.e2b.sandboxes]


def new_replicas(stack: ExitStack, folder: Path, script: str) -> Replicas:
    """Set up a lab for replicas, without starting any, whose Redis runs until the stack closes."""
    redis = stack.enter_context(redis_server(folder, keeps=True))
    lab, e2b = new_e2b_service(stack, script)
    return Replicas(lab, e2b, redis)


async def two_replicas(stack: ExitStack, folder: Path) -> tuple[Replicas, Served, Served, dict[str, Any]]:
    """Start two replicas with short leases, and make a session at the first."""
    replicas = new_replicas(stack, folder, TWO_APPROVALS)
    first, second = replicas.start(SOON), replicas.start(SOON)
    async with first.client() as client:
        return replicas, first, second, await created(client)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def log_of(client: httpx.AsyncClient, session_id: str) -> list[dict[str, Any]]:
    """Return a session's log after checking that it has no gaps and no runner's event twice."""
    log = (await client.get(f"/api/sessions/{session_id}/log")).json()["events"]
    assert [each["id"] for each in log] == list(range(1, len(log) + 1))
    seqs = [each["event"]["seq"] for each in log if "seq" in each["event"]]
    assert seqs == sorted(set(seqs))
    return [each["event"] for each in log]


def is_part(few: list[Sent], all_of_it: list[Sent]) -> bool:
    """Return whether the first list is a subsequence of the second."""
    left = iter(all_of_it)
    return all(any(each == other for other in left) for each in few)


async def test_a_reader_of_any_replica_gets_the_same_in_the_same_order(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, LONG_TEXT)
    async with replicas.start().client() as owner, replicas.start().client() as other:
        session = await created(owner)
        url = f"/api/sessions/{session['id']}"
        async with stream(owner, session["id"]) as here, stream(other, session["id"]) as there:
            await asyncio.gather(until(here, "result"), until(there, "result"))
            assert (await other.post(f"{url}/turns", json={"text": "more"})).status_code == 202
            (_, at_owner), (_, elsewhere) = await asyncio.gather(until(here, "result"), until(there, "result"))
            assert (await other.delete(url)).status_code == 202
            ends = await asyncio.gather(rest(here), rest(there))
        assert numbers(elsewhere) == numbers(at_owner)
        assert is_part(elsewhere, at_owner)
        assert [each.type for each in elsewhere].count("text_delta") > 0
        assert [each.type for each in at_owner].count("text_delta") > 0
        assert ends[0] == ends[1]
        assert (ends[0][-1].type, ends[0][-1].data["closed_by"]) == ("closed", "local")
        assert whole(await spans_of(other, session["id"])).count("agent.execute") == 2
    assert replicas.sandboxes == ["gone"]


async def test_a_reader_who_changes_replicas_gets_each_event_once(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, TWO_APPROVALS)
    async with replicas.start().client() as one, replicas.start().client() as two:
        session = await created(one)
        seen: list[Sent] = []
        for turn in range(100):
            reads, decides = (one, two) if turn % 2 else (two, one)
            async with stream(reads, session["id"], after=len(seen)) as events:
                sent, _ = await until_numbered(events)
            seen.append(sent)
            if sent.type == "approval_request":
                assert (await allow(decides, session["id"], sent)).status_code == 200
            elif sent.type == "result":
                assert (await decides.post(f"/api/sessions/{session['id']}/close")).status_code == 202
            elif sent.type == "closed":
                break
        assert [each.event for each in seen] == await log_of(one, session["id"])
        assert numbers(seen) == list(range(1, len(seen) + 1))
        names = whole(await spans_of(two, session["id"]))
        assert (names.count("agent.session"), names.count("agent.approval")) == (1, 2)


async def until_numbered(events: Any) -> tuple[Sent, list[Sent]]:
    """Read to the first event with a number; return it and all events read."""
    seen: list[Sent] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for sent in events:
            seen.append(sent)
            if sent.id is not None:
                return sent, seen
    raise AssertionError("the stream ended without a numbered event")


async def test_any_replica_takes_what_people_ask_and_one_decision_counts(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, APPROVALS_THEN_HANGS)
    async with replicas.start().client() as owner, replicas.start().client() as other:
        session = await created(owner)
        url = f"/api/sessions/{session['id']}"
        async with stream(other, session["id"]) as events:
            asked, _ = await until(events, "approval_request")
            answers = await asyncio.gather(
                allow(owner, session["id"], asked, decided_by="ada"),
                allow(other, session["id"], asked, decided_by="bob"),
            )
            winner, loser = sorted(answers, key=lambda answer: answer.status_code)
            assert (winner.status_code, loser.status_code) == (200, 409)
            assert loser.json()["type"] == "/problems/already-decided"
            assert loser.json()["decided_by"] == winner.json()["decided_by"]
            resolved, _ = await until(events, "approval_resolved")
            assert resolved.data["decided_by"] == winner.json()["decided_by"]
            asked, _ = await until(events, "approval_request")
            assert (await allow(other, session["id"], asked, decided_by="eve")).status_code == 200
            resolved, _ = await until(events, "approval_resolved")
            assert (resolved.data["decision"], resolved.data["decided_by"]) == ("allow", "eve")
            await until(events, "result")
            assert (await owner.get(f"{url}/files/made")).status_code == 200
            elsewhere = await other.get(f"{url}/files/made")
            assert (elsewhere.status_code, elsewhere.json()["type"]) == (409, "/problems/conflict")
            assert (await other.post(f"{url}/turns", json={"text": "think"})).status_code == 202
            await until(events, "turn_start")
            assert (await other.post(f"{url}/interrupt")).status_code == 202
            await until(events, "result")
            assert (await other.post(f"{url}/close")).status_code == 202
            assert (await rest(events))[-1].data["reason"] == "closed"
        await log_of(other, session["id"])


async def test_a_replica_that_is_killed_is_followed_by_another_under_the_readers_eyes(
    stack: ExitStack, tmp_path: Path
) -> None:
    replicas, first, second, session = await two_replicas(stack, tmp_path)
    async with second.client() as client:
        async with stream(client, session["id"]) as events:
            asked, seen = await until(events, "approval_request")
            first.kill()
            assert (await allow(client, session["id"], asked, decided_by="ada")).status_code == 200
            for kind in ("adopted", "approval_resolved", "approval_request"):
                sent, more = await until(events, kind)
                seen += more
            assert (await allow(client, session["id"], sent, decided_by="bob")).status_code == 200
            _, more = await until(events, "result")
            assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 202
            seen += more + await rest(events)
        assert numbers(seen) == list(range(1, seen[-1].id + 1 if seen[-1].id else 0))
        assert [each.event for each in seen if each.id is not None] == await log_of(client, session["id"])
        kinds = Counter(each.type for each in seen)
        assert (kinds["adopted"], kinds["approval_request"], kinds["result"], kinds["closed"]) == (1, 2, 1, 1)
        names = whole(await spans_of(client, session["id"]))
        assert names.count("agent.session") == names.count("sandbox.create") == names.count("agent.execute") == 1
        assert names.count("agent.approval") == names.count("execute_tool Bash") == 2
    assert replicas.sandboxes == ["gone"]


async def test_a_session_that_is_closed_while_nobody_has_it_is_ended_by_the_next(
    stack: ExitStack, tmp_path: Path
) -> None:
    replicas, first, second, session = await two_replicas(stack, tmp_path)
    async with second.client() as client, stream(client, session["id"]) as events:
        await until(events, "approval_request")
        first.kill()
        assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 202
        assert (await rest(events))[-1].data["reason"] == "closed"
        assert whole(await spans_of(client, session["id"])).count("agent.session") == 1
    assert replicas.sandboxes == ["gone"]


async def test_a_replica_that_was_paused_lets_go_and_its_readers_follow(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, TWO_APPROVALS)
    paused, second = replicas.start(SOON), replicas.start(SOON)
    async with paused.client() as one, second.client() as two:
        session = await created(one)
        async with stream(one, session["id"]) as there, stream(two, session["id"]) as here:
            asked, at_paused = await until(there, "approval_request")
            paused.pause()
            await until(here, "adopted")
            assert (await allow(two, session["id"], asked)).status_code == 200
            again, _ = await until(here, "approval_request", lambda each: each.data != asked.data)
            paused.go_on()
            _, more = await until(there, "approval_request")
            at_paused += more
            assert (await allow(one, session["id"], again)).status_code == 200
            assert (await until(here, "result"))[0].data["result"] == "Done."
            _, more = await until(there, "result")
            at_paused += more
            assert (await one.delete(f"/api/sessions/{session['id']}")).status_code == 202
            at_paused += await rest(there)
            assert (await rest(here))[-1].data["reason"] == "closed"
        log = await log_of(two, session["id"])
        assert [each.event for each in at_paused if each.id is not None] == log
        assert [each["type"] for each in log].count("adopted") == 1
        names = whole(await spans_of(two, session["id"]))
        assert names.count("agent.session") == names.count("sandbox.create") == 1
        assert names.count("execute_tool Bash") == 2
    assert any("owned by another process now" in line for line in paused.said)
    assert replicas.sandboxes == ["gone"]


async def test_a_replica_that_is_stopped_after_a_pause_ends_no_session_of_another(
    stack: ExitStack, tmp_path: Path
) -> None:
    replicas, paused, second, session = await two_replicas(stack, tmp_path)
    async with second.client() as client, stream(client, session["id"]) as events:
        asked, _ = await until(events, "approval_request")
        paused.pause()
        await until(events, "adopted")
        paused.process.send_signal(signal.SIGTERM)
        paused.go_on()
        assert await asyncio.to_thread(paused.process.wait, WAIT_SECONDS) == 0
        assert (await allow(client, session["id"], asked)).status_code == 200
        await until(events, "tool_result")
        await client.delete(f"/api/sessions/{session['id']}")
        closed = (await rest(events))[-1]
        assert (closed.type, closed.data["reason"]) == ("closed", "closed")
        assert whole(await spans_of(client, session["id"])).count("agent.session") == 1
    assert replicas.sandboxes == ["gone"]


async def test_nothing_is_lost_while_the_redis_is_away(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, LONG_TEXT)
    async with replicas.start().client() as owner, replicas.start().client() as other:
        session = await created(owner)
        url = f"/api/sessions/{session['id']}"
        async with stream(owner, session["id"]) as here, stream(other, session["id"]) as there:
            await asyncio.gather(until(here, "result"), until(there, "result"))
            assert (await other.post(f"{url}/turns", json={"text": "more"})).status_code == 202
            await until(here, "text_delta")
            replicas.redis.stop()
            for client in (owner, other):
                for ask in (client.get(url), client.post(f"{url}/interrupt"), client.get(f"{url}/events")):
                    answer = await ask
                    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/store-unavailable")
                    assert int(answer.headers["retry-after"]) > 0
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/healthz")).status_code == 200
            replicas.redis.start()
            (ended, _), (same, _) = await asyncio.gather(until(here, "result"), until(there, "result"))
            assert ended == same
            assert (await other.delete(url)).status_code == 202
            ends = await asyncio.gather(rest(here), rest(there))
        assert ends[0] == ends[1]
        log = await log_of(other, session["id"])
        kinds = Counter(each["type"] for each in log)
        assert (kinds["text"], kinds["result"], kinds["adopted"], kinds["closed"]) == (2, 2, 0, 1)
        assert whole(await spans_of(owner, session["id"])).count("agent.execute") == 2
    assert replicas.sandboxes == ["gone"]


@dataclass
class Storm:
    """Two replicas of which the older one is killed and replaced each time that enough events were read."""

    replicas: Replicas
    chance: random.Random
    most: int
    killed: int = 0
    living: list[Served] = field(default_factory=list[Served])
    seen: int = 0
    next: int = 5
    calm: asyncio.Lock = field(default_factory=asyncio.Lock)
    killing: asyncio.Task[None] | None = None

    def count(self) -> None:
        """Count an event; if enough were read, kill a replica, except while one is being replaced."""
        self.seen += 1
        is_over = self.killing is None or self.killing.done()
        if is_over and self.killed < self.most and self.seen >= self.next:
            self.killed += 1
            self.killing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        async with self.calm:
            self.living.pop(0).kill()  # the older one
        self.living.append(await asyncio.to_thread(self.replicas.start, SOON))
        self.next = self.seen + self.chance.randint(1, 12)

    async def whole_session(self) -> tuple[str, list[Sent]]:
        """Make a session, read it at random replicas, and close it after its result; return its id and events."""
        async with self.calm, self.chance.choice(self.living).client() as client:
            session_id = (await created(client, allowed_tools=["Bash"]))["id"]
        seen: list[Sent] = []
        while not seen or seen[-1].type != "closed":
            try:
                async with self.chance.choice(self.living).client() as client:
                    if any(each.type == "result" for each in seen):
                        await client.delete(f"/api/sessions/{session_id}")
                    await self._read(client, session_id, seen)
            except httpx.TransportError:
                continue  # this replica was killed
        return session_id, seen

    async def _read(self, client: httpx.AsyncClient, session_id: str, seen: list[Sent]) -> None:
        """Read events up to the first result or to the stream's end."""
        had_result = any(each.type == "result" for each in seen)
        async with stream(client, session_id, after=len(seen)) as events:
            async for sent in events:
                if sent.id is not None:
                    seen.append(sent)
                    self.count()
                    if sent.type == "result" and not had_result:
                        return


async def test_replicas_killed_at_random_moments_lose_and_double_nothing(stack: ExitStack, tmp_path: Path) -> None:
    replicas = new_replicas(stack, tmp_path, TWO_APPROVALS)
    storm = Storm(replicas, random.Random(20), most=6)
    storm.living += [replicas.start(SOON), replicas.start(SOON)]
    at_once = asyncio.Semaphore(4)

    async def one() -> tuple[str, list[Sent]]:
        async with at_once:
            return await storm.whole_session()

    async with asyncio.timeout(120):
        done = await asyncio.gather(*(one() for _ in range(8)))
    assert storm.killing is not None
    await storm.killing
    assert storm.killed >= 1
    async with storm.living[0].client() as client:
        for session_id, seen in done:
            assert [each.event for each in seen] == await log_of(client, session_id)
            assert numbers(seen) == list(range(1, len(seen) + 1))
            kinds = Counter(each.type for each in seen)
            assert [kinds[each] for each in ("prompt", "start", "turn_start", "result", "closed")] == [1] * 5
            assert (kinds["tool_use"], kinds["tool_result"], seen[-1].data["reason"]) == (2, 2, "closed")
            names = whole(await spans_of(client, session_id))
            assert (names.count("agent.session"), names.count("execute_tool Bash")) == (1, 2)
    assert set(replicas.sandboxes) == {"gone"}
