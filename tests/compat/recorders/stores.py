"""Records a SQLite store and a Redis store: what a real service has written, set down again without this machine.

A service in the stand-in of E2B makes sessions of every kind and is killed. What its store then holds is read, freed of
paths and names of this machine, and written through the Store protocol into the two stores that are kept.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sqlite3
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.compat.adapter import (
    Additions,
    Decision,
    SessionRecord,
    SessionState,
    Store,
    Stored,
    Token,
    digest_of,
    open_store,
)
from tests.compat.contents import FAR_DAY, FAR_SECONDS, Json, contents_of, request_ids
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
    TOKENS,
    TURN,
    TURN_KEY,
    read_gzip,
    write_gzip,
    write_json,
    write_lines,
)
from tests.compat.redis_dump import dump
from tests.support.hosts import E2BLab, e2b_lab
from tests.support.redis import redis_server
from tests.support.service import Served, ServiceLab, allow, created, rest, service_lab, stream, until

OWNER = "replica-1"
SHOWN = ("", "/log", "/trace")

SCRIPT = """
model: claude-sonnet-4-5
conversations:
  mend:
    when: Mend the parser
    replies:
      - thinking: Three files and a question.
        text: I begin.
        tools: [{name: Bash, input: {command: echo one > one}}]
        usage: {input_tokens: 1200, output_tokens: 34, cache_read_input_tokens: 900}
      - tools: [{name: Bash, input: {command: echo two > two}}]
      - tools: [{name: Bash, input: {command: echo three > three}}]
      - tools:
          - name: AskUserQuestion
            input:
              questions:
                - question: Which colour?
                  header: Colour
                  multiSelect: false
                  options: [{label: Red, description: r}, {label: Blue, description: b}]
      - {text: "Mended: ü 😀", usage: {input_tokens: 300, output_tokens: 20}}
      - {text: "The docs are done."}
  wait:
    when: Wait for me
    replies:
      - tools: [{name: Bash, input: {command: echo first > first}}]
      - tools: [{name: Bash, input: {command: echo second > second}}]
      - text: Waited.
  slow:
    when: Count slowly
    replies:
      - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(600)'"}}]
      - text: Counted.
      - text: Once more.
  talk:
    when: Let us talk
    replies:
      - {text: Hello there., usage: {input_tokens: 50, output_tokens: 5}}
      - text: And again.
      - text: And once more.
  ask:
    when: Ask me
    replies:
      - tools:
          - name: AskUserQuestion
            input:
              questions:
                - question: Tabs or spaces?
                  header: Indent
                  multiSelect: false
                  options: [{label: Tabs, description: t}, {label: Spaces, description: s}]
      - text: Thank you.
  lose:
    when: Lose it
    replies:
      - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(600)'"}}]
      - text: Found.
"""


def record() -> None:
    """Write the stores, and beside them all that they hold."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compat-")))
        e2b = stack.enter_context(e2b_lab(SCRIPT))
        service = stack.enter_context(service_lab(root, e2b.environ))
        answers = asyncio.run(_served(service, e2b))
        for sandbox in e2b.e2b.sandboxes:
            e2b.e2b.lose(sandbox.id)
        found = asyncio.run(_read(service.store, answers))
        clean = json.loads(_without_machine(json.dumps(found, ensure_ascii=False), e2b, root))
    _write(clean)


async def _served(lab: ServiceLab, e2b: E2BLab) -> list[Json]:
    """Let a service make every kind of session, kill it, and return the requests that had an idempotency key."""
    await _add_tokens(lab.store)
    service = lab.start("--sandbox", "e2b", "--auth", "on")
    async with service.client(OPERATOR) as client, service.client(APPROVER) as approver:
        keyed = await _mend(client, approver)
        await _waits(client, approver)
        await _slow(client)
        async with service.client(OPERATOR_OF_BOLT) as bolt:
            await _talks(bolt)
            await _asks(bolt)
        await _is_lost(client, e2b)
        service.kill()
    return keyed


async def _add_tokens(place: str) -> None:
    store = open_store(place)
    await store.open()
    for token in _tokens():
        await store.add_token(token)
    await store.close()


def _shown(contents: Json) -> Json:
    """Return what a service shows of the closed sessions of the store that was written."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compat-")))
        e2b = stack.enter_context(e2b_lab(SCRIPT))
        lab = stack.enter_context(service_lab(root, e2b.environ))
        Path(lab.store).write_bytes(read_gzip(SQLITE))
        service = lab.start("--sandbox", "e2b", "--auth", "on", "--retention-days", "36500")
        ids = [each["record"]["id"] for each in contents["sessions"] if "closed_at" in each["state"]]
        return asyncio.run(_read_all(service, [f"/api/sessions/{id_}{what}" for id_ in ids for what in SHOWN]))


async def _read_all(service: Served, paths: list[str]) -> Json:
    async with service.client(OPERATOR) as client:
        return {path: (await client.get(path)).raise_for_status().json() for path in paths}


def _tokens() -> list[Token]:
    return [
        Token(
            id=f"tok_00000000000{number}",
            digest=digest_of(plaintext),
            name=name,
            tenant_id=tenant_id,
            role=role,
            created_at=1_795_900_000.25 + number,
            expires_at=4e9 if number == 3 else None,
        )
        for number, (plaintext, (name, tenant_id, role)) in enumerate(TOKENS.items())
    ]


async def _mend(client: httpx.AsyncClient, approver: httpx.AsyncClient) -> list[Json]:
    """A session of two turns with every decision, which is closed."""
    headers = {"content-type": "application/json", "idempotency-key": FIRST_KEY}
    answer = await client.post("/api/sessions", content=MEND, headers=headers)
    assert answer.status_code == 201, answer.text
    session = answer.json()
    async with stream(client, session["id"]) as events:
        first, _ = await until(events, "approval_request")
        assert (await allow(approver, session["id"], first)).status_code == 200
        second, _ = await until(events, "approval_request")
        edited = {"command": "echo edited > two"}
        assert (await allow(approver, session["id"], second, updated_input=edited)).status_code == 200
        third, _ = await until(events, "approval_request")
        url = f"/api/sessions/{session['id']}/approvals/{third.data['approval_id']}"
        denied = await client.post(url, json={"decision": "deny", "message": "Not that."})
        assert denied.status_code == 200, denied.text
        asked, _ = await until(events, "question_request")
        url = f"/api/sessions/{session['id']}/questions/{asked.data['question_id']}"
        answered = await approver.post(url, json={"answers": {"Which colour?": "Blue"}})
        assert answered.status_code == 200, answered.text
        await until(events, "result")
        headers |= {"idempotency-key": TURN_KEY, "traceparent": CALLER}
        turn = await client.post(f"/api/sessions/{session['id']}/turns", content=TURN, headers=headers)
        assert turn.status_code == 202, turn.text
        await until(events, "result")
        assert (await client.delete(f"/api/sessions/{session['id']}")).status_code == 202
        await rest(events)
    return [{"tenant_id": "acme", "key": FIRST_KEY}, {"tenant_id": "acme", "key": TURN_KEY}]


async def _waits(client: httpx.AsyncClient, approver: httpx.AsyncClient) -> None:
    """A session that waits for its second approval."""
    session = await created(client, "Wait for me", user_id="ada", approval_timeout=86_400.0)
    async with stream(client, session["id"]) as events:
        first, _ = await until(events, "approval_request")
        assert (await allow(approver, session["id"], first)).status_code == 200
        await until(events, "tool_result")
        await until(events, "approval_request")


async def _slow(client: httpx.AsyncClient) -> None:
    """A session whose tool runs."""
    session = await created(client, "Count slowly", allowed_tools=["Bash"], max_turns=7)
    async with stream(client, session["id"]) as events:
        await until(events, "tool_use")


async def _talks(client: httpx.AsyncClient) -> None:
    """A session of another tenant that is idle, and has a turn in its caller's trace."""
    session = await created(client, "Let us talk", user_id="bob")
    async with stream(client, session["id"]) as events:
        await until(events, "result")
        headers = {"traceparent": CALLER, "tracestate": "vendor=x"}
        turn = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "More"}, headers=headers)
        assert turn.status_code == 202, turn.text
        await until(events, "result")


async def _asks(client: httpx.AsyncClient) -> None:
    """A session that waits for an answer."""
    session = await created(client, "Ask me", approval_timeout=86_400.0)
    async with stream(client, session["id"]) as events:
        await until(events, "question_request")


async def _is_lost(client: httpx.AsyncClient, e2b: E2BLab) -> None:
    """A session that failed: its sandbox is gone."""
    session = await created(client, "Lose it", allowed_tools=["Bash"])
    async with stream(client, session["id"]) as events:
        await until(events, "tool_use")
        e2b.e2b.lose(e2b.e2b.sandboxes[-1].id)
        await rest(events)


# -- reading what the service left --------------------------------------------------------------------------


async def _read(place: str, keyed: list[Json]) -> Json:
    """Return all that the killed service's store holds, as `contents_of` does, with the keys to ask for."""
    store = open_store(place)
    await store.open()
    try:
        sessions: list[Json] = []
        found, _ = await store.page(None, status=None, limit=100, before=None)
        for stored in reversed(found):
            session_id = stored.record.id
            if stored.record.title == "Count slowly":
                await _leave_undone(store, session_id)
            events = [json.loads(entry.data) for entry in await store.read(session_id, 0, limit=100_000)]
            commands = [json.loads(each.data) for each in await store.commands(session_id, 0)]
            ids = [each for each in request_ids(events, commands) if await store.decision(session_id, each)]
            decisions = [{"request_id": each} for each in ids]
            sessions.append({"record": {"id": session_id}, "decisions": decisions})
        wanted: Json = {"sessions": sessions, "spent": [], "remembered": [{**each, "digest": "?"} for each in keyed]}
        return await contents_of(store, wanted)
    finally:
        await store.close()


async def _leave_undone(store: Store, session_id: str) -> None:
    """Queue what a service would queue for an owner that has died."""
    turn_id = "7f3c1c7e-0000-4000-8000-000000000001"
    prompt = {"type": "prompt", "by": "ada", "turn_id": turn_id, "text": "Again, please", "traceparent": CALLER}
    sent = Decision(request_id=f"turn:{turn_id}", decision="sent", decided_by="ada", decided_at=1_795_900_000.5)
    await store.decide(session_id, sent, json.dumps(prompt).encode())
    await store.push(session_id, b'{"type":"interrupt","by":"grace"}')


def _without_machine(text: str, e2b: E2BLab, root: Path) -> str:
    """Replace what only this machine has: its folders and its name."""
    checkout = str(Path(__file__).resolve().parents[3])
    for here, there in {
        str(e2b.work): "/home/user/work",
        str(e2b.state): "/var/lib/sandspan",
        str(e2b.root): "/home/user",
        str(root): "/home/user",
        sys.prefix: "/opt/sandspan",
        checkout: "/opt/sandspan/src",
    }.items():
        text = text.replace(here, there)
    name = socket.gethostname()[:40]
    for owner in {part for part in text.split('"') if part.startswith(f"{name}-")}:
        text = text.replace(owner, OWNER)
    assert name not in text
    return text


# -- writing what is kept -----------------------------------------------------------------------------------


def _write(contents: Json) -> None:
    nano = {"acme": 0, "bolt": 0}
    for each in contents["sessions"]:
        nano[each["record"]["tenant_id"]] += round(each["state"].get("cost_usd", 0.0) * 1e9)
    contents["spent"] = [[tenant, FAR_DAY, of / 1e9] for tenant, of in nano.items()]
    (made, *_) = contents["remembered"]  # the same request under another key, whose answer has not come
    contents["remembered"].append({**made, "key": IN_FLIGHT_KEY, "answer": None})
    contents["counts"] = [["acme", "turns", 3], ["bolt", "turns", 1]]
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        path = Path(folder, "service.sqlite")
        asyncio.run(_fill(str(path), contents))
        with sqlite3.connect(path) as connection:  # one file, without a log beside it
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")
        connection.close()
        write_gzip(SQLITE, path.read_bytes())
        with redis_server(Path(folder)) as server:
            asyncio.run(_fill(server.url, contents))
            write_lines(REDIS, dump(server))
    write_json(STORES, contents)
    write_json(REST, _shown(contents))


async def _fill(place: str, contents: Json) -> None:
    store = open_store(place)
    await store.open()
    try:
        for each in contents["sessions"]:
            await _keep(store, each)
        for each in contents["tokens"]:
            await store.add_token(msgspec.convert(each, Token))
        for each in contents["remembered"]:
            key = (each["tenant_id"], each["key"], each["digest"])
            assert await store.reserve(*key, FAR_SECONDS) is None
            if each["answer"] is not None:
                await store.answer(*key, base64.b64decode(each["answer"]), FAR_SECONDS)
        for tenant, what, times in contents["counts"]:
            for _ in range(times):
                await store.count(tenant, what, FAR_SECONDS)
        kept = await contents_of(store, contents)
        assert kept == {name: contents[name] for name in kept}
    finally:
        await store.close()


async def _keep(store: Store, session: Json) -> None:
    """Write a session as its owner did: made, its log in three steps, its spans and decisions with the last."""
    record = msgspec.convert(session["record"], SessionRecord)
    state = msgspec.convert(session["state"], SessionState)
    waiting: list[tuple[int, Any]] = [(position, command) for position, command in session["commands"]]
    begin = SessionState(updated_at=record.created_at, model=record.request.get("model"))
    done = [b"{}"] * (waiting[0][0] - 1 if waiting else state.commands_done)
    await store.create(Stored(record, begin), OWNER, done, most_open=None)
    for position, command in waiting:
        assert await store.push(record.id, _json(command)) == position
    lines = [_json(event) for _, event in session["events"]]
    third = len(lines) // 3
    for last in (third, 2 * third):
        partly = msgspec.structs.replace(begin, last_event_id=last)
        await store.append(record.id, OWNER, lines[last - third : last], partly)
    decisions = [msgspec.convert(each, Decision) for each in session["decisions"]]
    spans = [base64.b64decode(each) for each in session["spans"]]
    more = Additions(spans=spans, decisions=decisions, cost_usd=state.cost_usd, day=FAR_DAY)
    await store.append(record.id, OWNER, lines[2 * third :], state, more)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
