"""Whole sessions over HTTP and SSE with the real service and CLI and a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract.genai import MESSAGES
from tests.server.scripts import QUESTION, TALK, TWO_APPROVALS
from tests.support.hosts import HostLab
from tests.support.service import ServiceLab, allow, created, numbers, rest, stream, until

pytestmark = pytest.mark.anyio
Make = Callable[[str], tuple[ServiceLab, HostLab]]


async def test_a_session_is_made_streamed_decided_and_closed(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    async with lab.start().client() as client:
        session = await created(client, user_id="ada", metadata={"org": "acme"})
        assert session["status"] == "starting"
        async with stream(client, session["id"]) as events:
            asked, seen = await until(events, "approval_request")
            assert [each.type for each in seen if each.type != "text_delta"] == [
                *("sandbox", "prompt", "start", "turn_start", "text", "tool_use", "approval_request"),
            ]
            now = (await client.get(f"/api/sessions/{session['id']}")).json()
            assert now["status"] == "needs_you"
            assert [each["id"] for each in now["waiting"]] == [asked.data["approval_id"]]
            decided = await allow(
                client, session["id"], asked, updated_input={"command": "touch edited"}, decided_by="ada"
            )
            assert decided.status_code == 200, decided.text
            assert decided.json()["decision"] == "allow_edited"
            resolved, _ = await until(events, "approval_resolved")
            assert (resolved.data["decision"], resolved.data["decided_by"]) == ("allow_edited", "ada")
            second, _ = await until(events, "approval_request")
            url = f"/api/sessions/{session['id']}/approvals/{second.data['approval_id']}"
            denied = await client.post(url, json={"decision": "deny", "message": "no", "decided_by": "bob"})
            assert denied.status_code == 200, denied.text
            result, _ = await until(events, "result")
            assert result.data["result"] == "Done."
            assert result.event["trace_id"] == session["trace_id"]
            sent = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "again"})
            assert sent.status_code == 202, sent.text
            again, _ = await until(events, "result")
            assert again.data["result"] == "Again."
            assert (await client.get(f"/api/sessions/{session['id']}/files/edited")).status_code == 200
            assert (await client.get(f"/api/sessions/{session['id']}/files/made")).status_code == 404
            assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 202
            closed = (await rest(events))[-1]
        assert (closed.type, closed.data["reason"], closed.data["closed_by"]) == ("closed", "closed", "local")
        after = (await client.get(f"/api/sessions/{session['id']}")).json()
        assert (after["status"], after["turns"], after["waiting"]) == ("closed", 2, [])
        assert after["last_event_id"] == closed.id


async def test_no_prompt_reads_a_file_or_runs_a_command(make_service: Make, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"the content of {name}")
    prompts = (f"summarize @{tmp_path}/one", f"summarize @{tmp_path}/two", "/compact")
    lab, host = make_service(TALK)
    async with lab.start().client() as client:
        session = await created(client, prompts[0])
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            for text in prompts[1:]:
                await client.post(f"/api/sessions/{session['id']}/turns", json={"text": text})
                await until(events, "result")
    asked = str(host.model.requests[2].body["messages"])
    assert [prompt in asked for prompt in prompts] == [True, True, True]
    assert "the content of" not in asked


async def test_a_question_is_answered_by_the_one_who_answers_first(make_service: Make) -> None:
    lab, _ = make_service(QUESTION)
    async with lab.start().client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            asked, _ = await until(events, "question_request")
            url = f"/api/sessions/{session['id']}/questions/{asked.data['question_id']}"
            wrong = await client.post(url, json={"answers": {"colour": "Green"}})
            assert (wrong.status_code, wrong.json()["type"]) == (422, "/problems/input-changed")
            assert wrong.json()["detail"].startswith("there is no question 'colour'")
            (waiting,) = (await client.get(f"/api/sessions/{session['id']}")).json()["waiting"]
            assert (waiting["id"], waiting["event_id"]) == (asked.data["question_id"], asked.id)
            first = await client.post(url, json={"answers": {"Which colour?": "Blue"}, "decided_by": "ada"})
            second = await client.post(url, json={"answers": {"Which colour?": "Red"}, "decided_by": "bob"})
            assert first.status_code == 200
            assert (second.status_code, second.json()["decided_by"]) == (409, "ada")
            resolved, _ = await until(events, "question_resolved")
            assert resolved.data["answers"] == {"Which colour?": "Blue"}
            await until(events, "result")


async def test_a_reader_goes_on_exactly_where_it_left(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start().client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            _, first = await until(events, "result")
        left_at = numbers(first)[2]
        async with stream(client, session["id"], after=left_at) as events:
            _, second = await until(events, "result")
        assert numbers(first) == list(range(1, len(numbers(first)) + 1))
        assert numbers(second) == numbers(first)[3:]
        whole = (await client.get(f"/api/sessions/{session['id']}/log")).json()
        assert [each["event"] for each in whole["events"]][: len(numbers(first))] == [
            sent.event for sent in first if sent.id is not None
        ]


async def test_a_closed_session_is_replayed_and_then_tells_its_reader_to_stay_away(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start().client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            await client.post(f"/api/sessions/{session['id']}/close")
            await rest(events)
        async with stream(client, session["id"]) as events:
            replayed = await rest(events)
        assert numbers(replayed) == list(range(1, len(replayed) + 1))
        assert replayed[-1].type == "closed"
        url = f"/api/sessions/{session['id']}/events"
        assert (await client.get(url, headers={"last-event-id": str(replayed[-1].id)})).status_code == 204
        assert (await client.get(url, params={"after": replayed[-1].id})).status_code == 204
        assert (await client.get(url, params={"after": 10_000})).status_code == 422
        late = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "more"})
        assert (late.status_code, late.json()["type"]) == (409, "/problems/session-closed")
        assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 202


async def test_the_callers_trace_goes_on_in_the_session_with_as_much_content_as_the_service_allows(
    make_service: Make,
) -> None:
    lab, _ = make_service(TALK)
    trace_id, other = "ab" * 16, "cd" * 16
    async with lab.start("--content", "none").client() as client:
        headers = {"traceparent": f"00-{trace_id}-{'12' * 8}-01", "baggage": "user.id=eve"}
        made = await client.post("/api/sessions", json={"prompt": "go"}, headers=headers)
        assert made.headers["x-trace-id"] == trace_id
        assert made.headers["traceresponse"].startswith(f"00-{trace_id}-")
        session = made.json()
        assert (session["trace_id"], session["user_id"]) == (trace_id, "eve")
        async with stream(client, session["id"]) as events:
            _, seen = await until(events, "result")
            assert {each.event["trace_id"] for each in seen} == {trace_id}
            url = f"/api/sessions/{session['id']}/turns"
            sent = await client.post(url, json={"text": "2"}, headers={"traceparent": f"00-{other}-{'34' * 8}-01"})
            assert sent.json()["trace_id"] == other
            result, _ = await until(events, "result")
            assert result.event["trace_id"] == other
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        trace = (await client.get(f"/api/sessions/{session['id']}/trace")).json()
        spans = [
            span for resource in trace["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]
        ]
        roots = [span for span in spans if span["name"] == "agent.session"]
        assert [(root["traceId"], root["parentSpanId"]) for root in roots] == [(trace_id, "12" * 8)]
        turns = {span["traceId"]: span["parentSpanId"] for span in spans if span["name"] == "agent.execute"}
        assert turns == {trace_id: roots[0]["spanId"], other: "34" * 8}
        assert len({span["spanId"] for span in spans}) == len(spans)
        assert not {pair["key"] for span in spans for pair in span["attributes"]} & MESSAGES


ECHO = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: echo output}}]
          - text: Done.
"""


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), (False, None)),
        (("--tool-content", "preview"), (True, None)),
        (("--tool-content", "full"), (True, "output")),
    ],
)
async def test_the_services_spans_have_as_much_of_tools_as_it_allows(
    make_service: Make, options: tuple[str, ...], shown: tuple[bool, str | None]
) -> None:
    lab, _ = make_service(ECHO)
    async with lab.start(*options).client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        trace = (await client.get(f"/api/sessions/{session['id']}/trace")).json()
    spans = [span for resource in trace["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]]
    (call,) = [span for span in spans if span["name"] == "execute_tool Bash"]
    said = {pair["key"]: pair["value"].get("stringValue") for pair in call["attributes"]}
    arguments = said.get("gen_ai.tool.call.arguments")
    assert ("echo output" in (arguments or ""), said.get("gen_ai.tool.call.result")) == shown


async def test_headers_that_were_sent_more_than_once_are_told_apart(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    first, second = (f"00-{digits * 16}-{'12' * 8}-03" for digits in ("ab", "cd"))
    service = lab.start()
    async with service.client() as client:
        twice = [("traceparent", first), ("traceparent", second), ("tracestate", "lost=1")]
        states = [("tracestate", "a=1"), ("tracestate", ""), ("tracestate", "b=2 , c=3")]
        made = (await client.post("/api/sessions", json={"prompt": "go"}, headers=twice)).json()
        assert made["trace_id"] not in (first[3:35], second[3:35])
        headers = [("traceparent", first), *states, ("baggage", "org=acme"), ("baggage", "user.id=eve")]
        followed = (await client.post("/api/sessions", json={"prompt": "go"}, headers=headers)).json()
        assert (followed["trace_id"], followed["user_id"]) == (first[3:35], "eve")
        for session, state in ((made, ""), (followed, "a=1,b=2,c=3")):
            url = f"/api/sessions/{session['id']}"
            async with stream(client, session["id"]) as events:
                await until(events, "result")
                sent = await client.post(f"{url}/turns", json={"text": "2"}, headers=twice)
                assert sent.json()["trace_id"] == session["trace_id"]
                await until(events, "result")
                await client.delete(url)
                await rest(events)
            trace = (await client.get(f"{url}/trace")).json()
            spans = [each for part in trace["resourceSpans"] for scope in part["scopeSpans"] for each in scope["spans"]]
            assert {span["traceId"] for span in spans} == {session["trace_id"]}
            assert {span.get("traceState", "") for span in spans if span["name"] == "agent.session"} == {state}
    told = [line for line in service.said if "traceparent was sent 2 times; it is ignored" in line]
    assert len(told) == 3  # one line for each of the three requests


async def test_the_same_request_again_makes_one_session(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start().client() as client:
        headers = {"idempotency-key": "order-7"}
        first = await client.post("/api/sessions", json={"prompt": "go"}, headers=headers)
        second = await client.post("/api/sessions", json={"prompt": "go"}, headers=headers)
        other = await client.post("/api/sessions", json={"prompt": "stop"}, headers=headers)
        assert first.json() == second.json()
        assert second.headers["idempotent-replayed"] == "true"
        assert other.status_code == 422
        assert len((await client.get("/api/sessions")).json()["sessions"]) == 1


async def test_the_short_routes_are_aliases(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start().client() as client:
        made = await client.post("/api/stream/agent/init", json={"prompt": "go"})
        assert made.status_code == 201
        async with client.stream("GET", f"/api/stream/agent/{made.json()['id']}") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-trace-id"] == made.json()["trace_id"]


async def test_a_path_tells_all_the_methods_that_it_takes(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start().client() as client:
        for path, methods in (
            ("/api/sessions", "GET, POST"),
            ("/api/sessions/0/turns", "POST"),
            ("/api/sessions/0", "DELETE, GET"),
            ("/index.html", "GET, HEAD"),
        ):
            answer = await client.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, methods)
        for path in ("/api/sessions/0/turns", "/api/sessions/0/approvals/1", "/api/sessions/0/interrupt"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await client.get("/api/nothing")).status_code == 404
        assert (await client.get("/api/sessions/0")).status_code == 404
