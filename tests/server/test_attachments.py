"""Attachments of prompts over HTTP: on the way to the model, for readers, and within their limits."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_runner.contract.attachments import MAX_BYTES
from host_client.service import _body as bodies
from host_client.service._downloads import AT_ONCE, MOST_WAITING
from host_client.service._limits import ServiceLimits
from host_client.store._sqlite import SqliteStore
from host_client.store.base import FILE_OVERHEAD
from tests.server.scripts import TALK
from tests.server.test_access import token
from tests.server.test_bounds import NeverThere, serving
from tests.server.test_replicas import new_replicas
from tests.support.hosts import HostLab
from tests.support.pictures import PDF, png
from tests.support.runs import MODEL, WAIT_SECONDS
from tests.support.service import ServiceLab, created, rest, stream, until

pytestmark = pytest.mark.anyio
Make = Callable[[str], tuple[ServiceLab, HostLab]]

OCTETS = {"content-type": "application/octet-stream"}


def inline(data: bytes, name: str | None = None) -> dict[str, Any]:
    return {"data": base64.b64encode(data).decode()} | ({"name": name} if name else {})


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "", **headers: str) -> httpx.Response:
    params = {"name": name} if name else {}
    return await client.post("/api/files", content=data, params=params, headers={**OCTETS, **headers})


async def uploaded(client: httpx.AsyncClient, data: bytes, name: str = "") -> dict[str, Any]:
    answer = await upload(client, data, name)
    assert answer.status_code == 201, answer.text
    return {"file_id": answer.json()["file_id"]}


def shown(attachments: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["media_type"], each["size"], each.get("name")) for each in attachments]


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


async def test_the_model_gets_the_files_of_a_prompt_and_readers_get_them_back(make_service: Make) -> None:
    lab, host = make_service(TALK)
    text = "ü: 1, 2, 3\n".encode()
    async with lab.start().client() as client:
        uploads = [await uploaded(client, text, "a, b=ü.csv"), await uploaded(client, PDF, "plan.pdf")]
        session = await created(client, "compare", attachments=[inline(png(), "red.png"), *uploads])
        url = f"/api/sessions/{session['id']}"
        async with stream(client, session["id"]) as events:
            prompt, _ = await until(events, "prompt")
            begun, _ = await until(events, "turn_start")
            await until(events, "result")
            views = [("image/png", len(png()), "red.png"), ("text/plain", len(text), "a, b=ü.csv")]
            views.append(("application/pdf", len(PDF), "plan.pdf"))
            assert shown(prompt.data["attachments"]) == shown(begun.data["attachments"]) == views
            await client.post(f"{url}/turns", json={"text": "again", "attachments": [uploads[0]]})
            again, _ = await until(events, "prompt")
            await until(events, "result")
            await client.delete(url)
            await rest(events)
        contents = [b.get("source") for b in host.model.requests[-1].body["messages"][0]["content"] if "source" in b]
        assert [each["data"] for each in contents] == [
            base64.b64encode(png()).decode(),
            text.decode(),
            base64.b64encode(PDF).decode(),
        ]
        for data, view in zip((png(), text, PDF), prompt.data["attachments"], strict=True):
            answer = await client.get(f"{url}/attachments/{view['id']}")
            assert (answer.status_code, answer.content) == (200, data)
            assert answer.headers["content-type"].partition(";")[0] == view["media_type"]
            assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in answer.headers["content-security-policy"]
        assert again.data["attachments"][0]["id"] != prompt.data["attachments"][1]["id"]
        assert (await client.get(f"{url}/attachments/nothing")).status_code == 404
        log = (await client.get(f"{url}/log", params={"limit": 5000})).text
        trace = (await client.get(f"{url}/trace")).text
    for data in (base64.b64encode(png()).decode(), json.dumps(text.decode())[1:-1]):
        assert data not in log + trace


async def test_files_are_those_of_their_tenant_and_attachments_those_of_their_session(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    service = lab.start("--auth", "on")
    acme, viewer, evil = (
        token(lab, "acme", "operator", "a"),
        token(lab, "acme", "viewer", "v"),
        token(lab, "e", "operator", "e"),
    )
    async with service.client(acme) as client, service.client(viewer) as reader, service.client(evil) as stranger:
        file = await uploaded(client, png())
        refused = await stranger.post("/api/sessions", json={"prompt": "go", "attachments": [file]})
        assert problem(refused) == (422, "invalid")
        assert refused.json()["errors"][0]["where"] == "body.attachments.0"
        assert problem(await upload(reader, png())) == (403, "forbidden")
        async with service.client() as nobody:
            assert problem(await upload(nobody, png())) == (401, "unauthenticated")
            large = {"prompt": "go", "attachments": [inline(b"x" * 2_000_000)]}
            assert problem(await nobody.post("/api/sessions", json=large)) == (401, "unauthenticated")
        first, second = await created(client, attachments=[file]), await created(client)
        async with stream(client, first["id"]) as events:
            prompt, _ = await until(events, "prompt")
            (view,) = prompt.data["attachments"]
            assert (await reader.get(f"/api/sessions/{first['id']}/attachments/{view['id']}")).content == png()
            for caller, session in ((stranger, first), (client, second)):
                answer = await caller.get(f"/api/sessions/{session['id']}/attachments/{view['id']}")
                assert problem(answer) == (404, "not-found")
            assert problem(await client.get(f"/api/sessions/{first['id']}/attachments/{file['file_id']}"))[0] == 404


async def test_replicas_share_the_files(tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicas = new_replicas(stack, tmp_path, TALK)
        async with replicas.start().client() as owner, replicas.start().client() as other:
            session = await created(owner, attachments=[await uploaded(other, png(), "red.png")])
            async with stream(other, session["id"]) as events:
                await until(events, "result")
                body = {"text": "more", "attachments": [await uploaded(owner, PDF)]}
                assert (await other.post(f"/api/sessions/{session['id']}/turns", json=body)).status_code == 202
                prompt, _ = await until(events, "prompt")
                await until(events, "result")
            url = f"/api/sessions/{session['id']}/attachments/{prompt.data['attachments'][0]['id']}"
            assert (await owner.get(url)).content == (await other.get(url)).content == PDF
        asked = json.dumps(replicas.e2b.model.requests[-1].body)
        assert base64.b64encode(png()).decode() in asked
        assert base64.b64encode(PDF).decode() in asked


# -- limits, in a service whose sessions stay in their first state ----------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "service.sqlite")


@pytest.fixture
async def client(store: SqliteStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as (_, client):
        yield client


async def files_in(store: SqliteStore) -> int:
    rows: list[Any] = await store._rows("SELECT COUNT(*) FROM files")  # pyright: ignore[reportPrivateUsage]
    return rows[0][0]


async def test_an_upload_is_answered_with_what_it_is(client: httpx.AsyncClient) -> None:
    answer = await upload(client, png(), "red\n.png")
    view = answer.json()
    assert (answer.status_code, view["media_type"], view["size"], view["name"]) == (
        201,
        "image/png",
        len(png()),
        "red .png",
    )
    assert view["expires_at"] > 0


@pytest.mark.parametrize(
    ("attachment", "why"),
    [
        ({"data": "ü"}, "the data is not base64"),
        ({"data": "YQ=Y"}, "the data is not base64"),
        ({"data": ""}, "is empty"),
        (inline(b"\x00\x01\xff"), "none of PNG"),
        (inline(b"PK\x03\x04\xff", "a.docx"), "'a.docx' is none of PNG"),
        ({}, "either data or file_id"),
        ({"data": "YQ==", "file_id": "0" * 36}, "either data or file_id"),
        ({"file_id": "0" * 36, "name": "x"}, "has its name already"),
        ({"file_id": "0" * 36}, "there is no file"),
        ({"file_id": "../x"}, "must be the file_id of an upload"),
        ({"data": "YQ==", "path": "/etc/passwd"}, "this field is unknown"),
    ],
)
async def test_what_cannot_be_sent_is_told(client: httpx.AsyncClient, attachment: dict[str, Any], why: str) -> None:
    session = (await client.post("/api/sessions", json={"prompt": "go"})).json()
    for path, body in (("/api/sessions", {"prompt": "go"}), (f"/api/sessions/{session['id']}/turns", {"text": "go"})):
        answer = await client.post(path, json={**body, "attachments": [inline(b"fine"), attachment]})
        assert problem(answer) == (422, "invalid")
        assert why in answer.json()["detail"]
        assert answer.json()["errors"][0]["where"].startswith("body.attachments.1")


async def test_a_prompt_has_only_so_many_bytes_and_files(client: httpx.AsyncClient) -> None:
    half = [await uploaded(client, PDF + b"x" * (MAX_BYTES // 2 - len(PDF))) for _ in range(2)]
    fits = await client.post("/api/sessions", json={"prompt": "go", "attachments": half})
    assert fits.status_code == 201, fits.text
    for attachments, why in (
        ([*half, inline(b"x")], "10,485,760"),
        (half * 10, "10,485,760"),
        ([inline(b"x")] * 21, "at most 20"),
        ([inline(b"x" * 524_288), inline(b"x")], "524,288"),
    ):
        answer = await client.post("/api/sessions", json={"prompt": "go", "attachments": attachments})
        assert problem(answer) == (422, "invalid")
        assert why in answer.json()["detail"]
    whole = await client.post(
        "/api/sessions", json={"prompt": "go", "attachments": [inline(PDF + b"x" * (MAX_BYTES - len(PDF)))]}
    )
    assert whole.status_code == 201, whole.text


async def test_a_body_is_as_large_as_its_route_allows(client: httpx.AsyncClient) -> None:
    session = (await client.post("/api/sessions", json={"prompt": "go"})).json()
    large, url = "x" * 2_000_000, f"/api/sessions/{session['id']}"
    assert problem(await client.post(f"{url}/approvals/a", json={"decision": "deny", "message": large})) == (
        413,
        "too-large",
    )
    assert problem(await client.post(f"{url}/turns", json={"text": large})) == (422, "invalid")
    assert problem(await client.post(f"{url}/turns", json={"text": large * 8})) == (413, "too-large")
    assert problem(await upload(client, b"x" * (MAX_BYTES + 1))) == (413, "too-large")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    answer = await client.post("/api/files", content=endless(), headers=OCTETS)
    assert problem(answer) == (413, "too-large")
    assert problem(await client.post("/api/files", json={})) == (415, "unsupported-media-type")
    answer = await client.post(f"{url}/turns", content=b"{}", headers=OCTETS)
    assert problem(answer) == (415, "unsupported-media-type")


@pytest.mark.parametrize("session_id", ["%0A", "%09x", "a%3Fb", "a%23b"])
async def test_a_path_that_looks_like_that_of_a_turn_takes_no_large_body(
    client: httpx.AsyncClient, session_id: str
) -> None:
    answer = await client.post(f"/api/sessions/{session_id}/turns", json={"text": "x" * 2_000_000})
    assert problem(answer) == (413, "too-large")


async def test_a_large_body_has_only_so_many_values(client: httpx.AsyncClient) -> None:
    body = b'{"prompt": [' + b"[]," * 1_000_000 + b"0]}"
    answer = await client.post("/api/sessions", content=body, headers={"content-type": "application/json"})
    assert problem(answer) == (400, "bad-request")
    assert answer.json()["detail"] == "the body has more than 300,000 values"


async def test_an_upload_with_a_key_is_made_once(client: httpx.AsyncClient, store: SqliteStore) -> None:
    key = {"idempotency-key": "k-1"}
    first, again = [await upload(client, png(), "a.png", **key) for _ in range(2)]
    assert (first.status_code, first.json()) == (201, again.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert await files_in(store) == 1
    assert problem(await upload(client, png(), "b.png", **key)) == (422, "key-reused")


async def test_a_turn_with_a_key_keeps_its_files_once(client: httpx.AsyncClient, store: SqliteStore) -> None:
    session = (await client.post("/api/sessions", json={"prompt": "go"})).json()
    body = {"text": "look", "attachments": [inline(png())]}
    for _ in range(2):
        answer = await client.post(
            f"/api/sessions/{session['id']}/turns", json=body, headers={"idempotency-key": "k-1"}
        )
        assert answer.status_code == 202
    assert await files_in(store) == 1


async def test_a_tenant_uploads_so_often_and_has_so_much_room(store: SqliteStore) -> None:
    room = ServiceLimits(file_bytes_per_tenant=3 * (1000 + FILE_OVERHEAD), uploads_per_minute=4, sessions_per_tenant=1)
    async with serving(store, limits=room) as (_, client):
        file = await uploaded(client, b"x" * 1000)
        body = {"prompt": "go", "attachments": [file, file, file]}
        assert problem(await client.post("/api/sessions", json=body)) == (429, "too-many-files")
        assert await files_in(store) == 1  # of the refused prompt nothing is left
        session = await client.post("/api/sessions", json={"prompt": "go", "attachments": [file, file]})
        assert session.status_code == 201, session.text
        assert problem(await upload(client, b"x")) == (429, "too-many-files")
        second = await client.post("/api/sessions", json={"prompt": "go"})
        assert problem(second) == (429, "too-many-sessions")
        often = await upload(client, b"x")
        for _ in range(5):  # uploads are counted by the minute, and a new one may begin here
            often = await upload(client, b"x")
        assert problem(often) == (429, "too-many-uploads")
        assert int(often.headers["retry-after"]) > 0


async def test_few_large_bodies_are_read_at_a_time_and_small_ones_do_not_wait(client: httpx.AsyncClient) -> None:
    begun, may_end = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.release()
        await may_end.wait()
        yield b"x"

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        reading = [group.create_task(client.post("/api/files", content=slow(), headers=OCTETS)) for _ in range(AT_ONCE)]
        for _ in range(AT_ONCE):
            await begun.acquire()
        many = [client.post("/api/files", content=slow(), headers=OCTETS) for _ in range(MOST_WAITING + 1)]
        waiting = [group.create_task(each) for each in many]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [problem(each.result()) for each in done] == [(429, "too-many-uploads")]
        assert begun.locked()
        assert (await upload(client, b"small")).status_code == 201
        may_end.set()
    answers = [each.result().status_code for each in (*reading, *waiting)]
    assert sorted(answers) == [201] * (AT_ONCE + MOST_WAITING) + [429]


async def test_a_large_body_that_does_not_arrive_makes_room(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.01)

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    for _ in range(AT_ONCE + 1):
        answer = await client.post("/api/files", content=never(), headers=OCTETS)
        assert problem(answer) == (400, "bad-request")
        assert answer.headers["connection"] == "close"


async def test_a_session_that_is_refused_leaves_no_files(store: SqliteStore) -> None:
    async with serving(store, limits=ServiceLimits(sessions_per_tenant=0), sandbox=NeverThere) as (_, client):
        answer = await client.post("/api/sessions", json={"prompt": "go", "attachments": [inline(png())]})
        assert problem(answer) == (429, "too-many-sessions")
        assert await files_in(store) == 0


async def test_the_session_keeps_no_content_and_no_option_names_its_files(
    client: httpx.AsyncClient, store: SqliteStore
) -> None:
    body = {"prompt": "go", "model": MODEL, "attachments": [inline(b"the content of a file")]}
    session = (await client.post("/api/sessions", json=body)).json()
    stored = await store.get(session["id"])
    assert stored is not None
    assert stored.record.request == {"prompt": "go", "model": MODEL, "tenant_id": "local"}
    (command,) = await store.commands(session["id"], 0)
    assert b"the content of a file" not in command.data
