"""The service shows the sessions in a store of f6f5305 with their access rights, and closes those without a sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.compat.contents import Json
from tests.compat.files import (
    APPROVER,
    CALLER,
    FIRST_KEY,
    IN_FLIGHT_KEY,
    MEND,
    OPERATOR,
    OPERATOR_OF_BOLT,
    REDIS,
    REST,
    SQLITE,
    STORES,
    TURN,
    TURN_KEY,
    VIEWER,
    read_gzip,
    read_json,
    read_lines,
)
from tests.compat.redis_dump import restore
from tests.support.hosts import e2b_lab
from tests.support.redis import redis_server
from tests.support.service import Sent, Served, rest, service_lab, stream

pytestmark = pytest.mark.anyio

NOBODY_ASKS = "conversations: {main: {replies: []}}"


class Old(NamedTuple):
    """A service of today on a copy of the recorded store, and the content of that store."""

    served: Served
    contents: Json

    def session(self, title: str) -> Json:
        return next(each for each in self.contents["sessions"] if each["record"]["title"] == title)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    """Serve a copy of each recorded store; the stand-in of E2B has none of the old sandboxes."""
    options = ["--sandbox", "e2b", "--auth", "on", "--retention-days", "36500"]
    with ExitStack() as stack:
        e2b = stack.enter_context(e2b_lab(NOBODY_ASKS))
        lab = stack.enter_context(service_lab(tmp_path_factory.mktemp("service"), e2b.environ))
        if request.param == "redis":
            server = stack.enter_context(redis_server(tmp_path_factory.mktemp("redis")))
            restore(server, read_lines(REDIS))
            options += ["--store", server.url]
        else:
            Path(lab.store).write_bytes(read_gzip(SQLITE))
        yield Old(lab.start(*options), read_json(STORES))


def spans_in(trace: Json) -> dict[str, Any]:
    """Return the spans of a trace by span id, each with its resource and scope.

    The trace has the names of today's GenAI conventions, also for spans of an older runner.
    """
    trace = json.loads(json.dumps(trace).replace("usage.cache_creation.", "usage.cache_write."))
    return {
        span["spanId"]: (of_resource["resource"], of_scope["scope"], span)
        for of_resource in trace["resourceSpans"]
        for of_scope in of_resource["scopeSpans"]
        for span in of_scope["spans"]
    }


async def test_old_sessions_their_logs_and_their_traces_are_shown_as_they_were(old: Old) -> None:
    recorded = read_json(REST)
    assert len(recorded) == 6
    async with old.served.client(VIEWER) as client:
        for path, expected in recorded.items():
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            if path.endswith("/trace"):
                assert spans_in(answer.json()) == spans_in(expected)
            else:
                assert answer.json() == expected


async def test_a_reader_of_an_old_log_goes_on_where_it_left(old: Old) -> None:
    session = old.session("Mend the parser")
    async with old.served.client(VIEWER) as client, stream(client, session["record"]["id"], after=5) as events:
        assert await rest(events) == [Sent(number, event) for number, event in session["events"] if number > 5]


async def test_old_tokens_let_their_holders_do_what_they_could(old: Old) -> None:
    path = f"/api/sessions/{old.session('Mend the parser')['record']['id']}"
    expected = {VIEWER: (200, 403), APPROVER: (200, 403), OPERATOR: (200, 409), OPERATOR_OF_BOLT: (404, 404)}
    for token, codes in expected.items():
        async with old.served.client(token) as client:
            read = await client.get(path)
            sent = await client.post(f"{path}/turns", json={"text": "more"})
            assert (read.status_code, sent.status_code) == codes, (read.text, sent.text)


async def test_a_request_that_an_old_service_answered_is_answered_the_same_again(old: Old) -> None:
    session_id = old.session("Mend the parser")["record"]["id"]

    async def ask(client: httpx.AsyncClient, path: str, body: bytes, key: str) -> httpx.Response:
        headers = {"content-type": "application/json", "idempotency-key": key, "traceparent": CALLER}
        return await client.post(path, content=body, headers=headers)

    async with old.served.client(OPERATOR) as client:
        made = await ask(client, "/api/sessions", MEND, FIRST_KEY)
        assert (made.status_code, made.json()["id"]) == (201, session_id), made.text
        turn = await ask(client, f"/api/sessions/{session_id}/turns", TURN, TURN_KEY)
        sent = [event["data"]["turn_id"] for _, event in old.session("Mend the parser")["events"] if is_turn(event)]
        assert (turn.status_code, turn.json()["turn_id"]) == (202, sent[1]), turn.text
        other = await ask(client, "/api/sessions", MEND.replace(b"Mend", b"Bend"), FIRST_KEY)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/key-reused"), other.text
        busy = await ask(client, "/api/sessions", MEND, IN_FLIGHT_KEY)
        assert (busy.status_code, busy.json()["type"]) == (409, "/problems/key-in-use"), busy.text


def is_turn(event: Json) -> bool:
    return event["type"] == "prompt"


@pytest.mark.parametrize("title", ["Wait for me", "Count slowly", "Let us talk", "Ask me"])
async def test_an_open_session_whose_sandbox_is_gone_is_found_and_ended_with_the_reason(old: Old, title: str) -> None:
    session = old.session(title)
    token = OPERATOR_OF_BOLT if session["record"]["tenant_id"] == "bolt" else OPERATOR
    async with old.served.client(token) as client:
        async with stream(client, session["record"]["id"]) as events:
            seen = await rest(events)
        assert [(sent.id, sent.event) for sent in seen][: len(session["events"])] == [
            (number, event) for number, event in session["events"]
        ]
        assert (seen[-1].type, seen[-1].data["reason"], seen[-1].data["error_type"]) == ("closed", "failed", "sandbox")
        spans = (await client.get(f"/api/sessions/{session['record']['id']}/trace")).json()
    (root,) = [span for _, _, span in spans_in(spans).values() if span["name"] == "agent.session"]
    announced = session["record"]["root"]
    assert (root["traceId"], root["spanId"]) == (announced["trace_id"], announced["span_id"])
    assert root["startTimeUnixNano"] == str(announced["start"])
