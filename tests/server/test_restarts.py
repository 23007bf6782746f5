"""Another service goes on after one that was killed: no event is lost or duplicated, and the trace is whole."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.server.conftest import new_e2b_service
from tests.server.scripts import TALK, TWO_APPROVALS
from tests.support.hosts import E2BLab, HostLab
from tests.support.service import Sent, ServiceLab, allow, created, numbers, rest, spans_of, stream, until, whole

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
Make = Callable[[str], tuple[ServiceLab, HostLab]]
MakeE2B = Callable[[str], tuple[ServiceLab, E2BLab]]


@pytest.fixture
def make_e2b_service() -> Iterator[MakeE2B]:
    with ExitStack() as stack:
        yield lambda script: new_e2b_service(stack, script)


async def test_a_service_killed_while_an_approval_waits_goes_on_in_e2b(make_e2b_service: MakeE2B) -> None:
    lab, e2b = make_e2b_service(TWO_APPROVALS)
    first = lab.start("--sandbox", "e2b")
    async with first.client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            asked, _ = await until(events, "approval_request")
            first.kill()
    second = lab.start("--sandbox", "e2b")
    async with second.client() as client:
        async with stream(client, session["id"], after=asked.id) as events:
            await until(events, "adopted")
            answer = await allow(client, session["id"], asked, decided_by="ada")
            assert answer.status_code == 200, answer.text
            again, _ = await until(events, "approval_request")
            assert again.data["approval_id"] != asked.data["approval_id"]
            assert (await allow(client, session["id"], again, decided_by="bob")).status_code == 200
            await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            after = await rest(events)
        log = (await client.get(f"/api/sessions/{session['id']}/log")).json()["events"]
        assert [each["id"] for each in log] == list(range(1, len(log) + 1))
        seqs = [each["event"]["seq"] for each in log if "seq" in each["event"]]
        assert seqs == sorted(set(seqs))
        assert [each["event"]["type"] for each in log].count("approval_request") == 2
        names = whole(await spans_of(client, session["id"]))
    assert names.count("agent.session") == names.count("sandbox.create") == names.count("agent.execute") == 1
    assert names.count("agent.approval") == names.count("execute_tool Bash") == 2
    assert after[-1].data["reason"] == "closed"
    assert [each.state for each in e2b.e2b.sandboxes] == ["gone"]


async def test_what_was_asked_of_a_dead_service_is_carried_out_by_the_next(make_e2b_service: MakeE2B) -> None:
    lab, _ = make_e2b_service(TALK)
    first = lab.start("--sandbox", "e2b")
    async with first.client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            sent = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "2"})
            first.kill()
    assert sent.status_code == 202
    async with lab.start("--sandbox", "e2b").client() as client, stream(client, session["id"]) as events:
        _, seen = await until(events, "result", lambda each: each.data["turn"] == 2)
        prompts = [each.data["turn_id"] for each in seen if each.type == "prompt"]
        assert prompts.count(sent.json()["turn_id"]) == 1
        assert [each.data["result"] for each in seen if each.type == "result"] == ["Hello there.", "And again."]
        await client.delete(f"/api/sessions/{session['id']}")
        await rest(events)
        assert whole(await spans_of(client, session["id"])).count("agent.execute") == 2


async def test_a_local_agent_that_ended_with_its_service_is_told_of_as_lost(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    first = lab.start()
    async with first.client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            _, before = await until(events, "approval_request")
            first.kill()
    async with lab.start().client() as client:
        async with stream(client, session["id"]) as events:
            seen = await rest(events)
        assert numbers(seen) == list(range(1, len(seen) + 1))
        assert [each.event for each in seen][: len(numbers(before))] == [e.event for e in before if e.id is not None]
        assert seen[-1].type == "closed"
        assert seen[-1].data["reason"] == "lost"
        state = (await client.get(f"/api/sessions/{session['id']}")).json()
        assert (state["status"], state["waiting"]) == ("failed", [])
        spans = await spans_of(client, session["id"])
        assert whole(spans).count("agent.session") == 1


@pytest.mark.parametrize("moment", ["sandbox", "start", "turn_start", "tool_use", "text", "tool_result"])
async def test_a_service_killed_at_any_moment_loses_and_doubles_nothing(make_e2b_service: MakeE2B, moment: str) -> None:
    lab, _ = make_e2b_service(TWO_APPROVALS)
    first = lab.start("--sandbox", "e2b")
    seen: list[Sent] = []
    async with first.client() as client:
        session = await created(client, allowed_tools=["Bash"])
        async with stream(client, session["id"]) as events:
            _, seen = await until(events, moment)
            first.kill()
    async with lab.start("--sandbox", "e2b").client() as client:
        async with stream(client, session["id"], after=max(numbers(seen))) as events:
            _, more = await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            more += await rest(events)
        sent = [*(each for each in seen if each.id is not None), *(each for each in more if each.id is not None)]
        assert numbers(sent) == list(range(1, len(sent) + 1))
        kinds = Counter(each.type for each in sent)
        assert (kinds["prompt"], kinds["start"], kinds["turn_start"], kinds["result"]) == (1, 1, 1, 1)
        assert (kinds["tool_use"], kinds["tool_result"], kinds["adopted"], kinds["closed"]) == (2, 2, 1, 1)
        names = whole(await spans_of(client, session["id"]))
        assert names.count("execute_tool Bash") == 2


async def test_sessions_end_with_a_service_that_is_stopped(make_e2b_service: MakeE2B) -> None:
    lab, e2b = make_e2b_service(TWO_APPROVALS)
    service = lab.start("--sandbox", "e2b")
    async with service.client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            await until(events, "approval_request")
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            ended = await rest(events)
            assert await stopping == 0
    assert (ended[-1].type, ended[-1].data["reason"]) == ("closed", "shutdown")
    assert [each.state for each in e2b.e2b.sandboxes] == ["gone"]


async def test_a_session_ends_when_nothing_happens_but_not_in_a_turn_that_is_silent(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    async with lab.start("--idle-timeout", "0.2").client() as client:  # shorter than the agent's start
        session = await created(client)
        async with stream(client, session["id"]) as events:
            for _ in range(2):
                asked, _ = await until(events, "approval_request")
                assert (await allow(client, session["id"], asked)).status_code == 200
            await until(events, "result")
            closed, _ = await until(events, "closed")
    assert closed.data["reason"] == "inactive"
