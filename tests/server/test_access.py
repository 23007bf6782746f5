"""Permissions of roles and tenants on the real service with tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from host_client.service._app import described_app
from tests.server.scripts import TALK, TWO_APPROVALS
from tests.support.hosts import HostLab
from tests.support.runs import WAIT_SECONDS
from tests.support.service import ServiceLab, allow, created, rest, stream, until

pytestmark = pytest.mark.anyio
Make = Callable[[str], tuple[ServiceLab, HostLab]]

DECIDES = "approvals", "questions"
OPEN = "/api/login", "/api/logout", "/api/me"


def token(lab: ServiceLab, tenant: str, role: str, name: str) -> str:
    """Create a token with ``host_client tokens create`` while the service runs; return its plaintext."""
    made = subprocess.run(
        [
            *(sys.executable, "-m", "host_client", "tokens", "create", "--store", lab.store),
            *("--tenant", tenant, "--role", role, "--name", name),
        ],
        env=dict(lab.environ),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def routes() -> list[tuple[str, str]]:
    """Return method and path of every route with a session id."""
    paths = described_app().openapi()["paths"]
    return [
        (method.upper(), path) for path, operations in paths.items() for method in operations if "{session_id}" in path
    ]


async def asked(client: httpx.AsyncClient, method: str, path: str, session_id: str) -> int:
    """Send a request for a session to a route, with a valid body; return the status."""
    url = path.format(session_id=session_id, approval_id="a", question_id="q", attachment_id="a", path="f")
    bodies = {"turns": {"text": "x"}, "approvals": {"decision": "deny"}, "questions": {"answers": {"q": "a"}}}
    bodies["commands"] = {"type": "get_mcp_status"}
    body = next((each for part, each in bodies.items() if f"/{part}" in path), None)
    return (await client.request(method, url, json=body)).status_code


async def test_another_tenants_session_is_not_there_whatever_is_asked(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    service = lab.start("--auth", "on")
    acme, other = token(lab, "acme", "operator", "ada"), token(lab, "evil", "operator", "eve")
    async with service.client(acme) as client, service.client(other) as stranger:
        session = await created(client)
        assert session["tenant_id"] == "acme"
        statuses = {(m, p): await asked(stranger, m, p, session["id"]) for m, p in routes()}
        assert {each for each, status in statuses.items() if status != 404} == set()
        assert (await stranger.get("/api/sessions")).json()["sessions"] == []
        assert [each["id"] for each in (await client.get("/api/sessions")).json()["sessions"]] == [session["id"]]
        assert (await stranger.post("/api/sessions", json={"prompt": "go", "tenant_id": "acme"})).json()[
            "tenant_id"
        ] == ("evil")


async def test_a_role_may_do_what_it_is_for_and_no_more(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    service = lab.start("--auth", "on")
    roles = {role: token(lab, "acme", role, role) for role in ("viewer", "approver", "operator")}
    async with service.client(roles["operator"]) as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            await until(events, "result")
        await client.delete(f"/api/sessions/{session['id']}")
        async with stream(client, session["id"]) as events:
            await rest(events)
    refused: dict[str, set[tuple[str, str]]] = {}
    for role, secret in roles.items():
        async with service.client(secret) as client:
            statuses = {(m, p): await asked(client, m, p, session["id"]) for m, p in routes()}
            refused[role] = {each for each, status in statuses.items() if status == 403}
            assert 401 not in statuses.values()
    changing = {(method, path) for method, path in routes() if method != "GET"}
    deciding = {(method, path) for method, path in changing if any(part in path for part in DECIDES)}
    assert refused == {"viewer": changing, "approver": changing - deciding, "operator": set()}
    async with service.client(roles["approver"]) as client:
        assert (await client.post("/api/sessions", json={"prompt": "go"})).status_code == 403


async def test_without_a_token_there_is_nothing_but_the_page(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    async with lab.start("--auth", "on").client() as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        statuses = {
            (method, path): await asked(client, method.upper(), path, "s")
            for path, operations in described_app().openapi()["paths"].items()
            for method in operations
            if path not in OPEN
        }
        assert set(statuses.values()) == {401}, statuses
        assert (await client.get("/api/me")).status_code == 401


async def test_who_decides_is_the_tokens_name_whatever_the_body_says(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    service = lab.start("--auth", "on")
    ada, bob = token(lab, "acme", "operator", "ada"), token(lab, "acme", "approver", "bob")
    async with service.client(ada) as client, service.client(bob) as approver:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            request, _ = await until(events, "approval_request")
            decided = await allow(approver, session["id"], request, decided_by="ada")
            assert decided.json()["decided_by"] == "bob"
            late = await allow(client, session["id"], request)
            assert (late.status_code, late.json()["decided_by"]) == (409, "bob")
            resolved, _ = await until(events, "approval_resolved")
            assert resolved.data["decided_by"] == "bob"
    assert not [line for line in service.said if ada in line or bob in line]


async def test_an_approval_is_bound_to_the_input_that_was_shown(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    async with lab.start().client() as client:
        session = await created(client)
        async with stream(client, session["id"]) as events:
            request, _ = await until(events, "approval_request")
            url = f"/api/sessions/{session['id']}/approvals/{request.data['approval_id']}"
            wrong = await client.post(url, json={"decision": "allow", "input_sha256": "0" * 64})
            none = await client.post(url, json={"decision": "allow"})
            unknown = await client.post(f"{url}x", json={"decision": "deny"})
            said = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "yes, do it"})
            assert [each.status_code for each in (wrong, none, unknown, said)] == [422, 422, 404, 202]
            now = (await client.get(f"/api/sessions/{session['id']}")).json()
            assert (now["status"], len(now["waiting"])) == ("needs_you", 1)  # a message does not approve a call
            assert now["waiting"][0]["input_sha256"] == request.data["input_sha256"]
            assert (await allow(client, session["id"], request)).status_code == 200
            await until(events, "approval_resolved")


async def test_nobody_in_time_is_a_timeout_and_not_a_denial(make_service: Make) -> None:
    lab, _ = make_service(TWO_APPROVALS)
    async with lab.start().client() as client:
        session = await created(client, approval_timeout=0.2)
        async with stream(client, session["id"]) as events:
            request, _ = await until(events, "approval_request")
            resolved, _ = await until(events, "approval_resolved")
            assert (resolved.data["decision"], resolved.data.get("decided_by")) == ("timeout", None)
            late = await allow(client, session["id"], request)
            assert (late.status_code, late.json()["decision"]) == (409, "timeout")


async def test_a_tenant_has_so_many_sessions_turns_and_dollars(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    limits = ("--max-sessions", "1", "--turns-per-minute", "3", "--usd-per-day", "0.0000001")
    async with lab.start(*limits).client() as client:
        session = await created(client, max_budget_usd=0.00000005)
        second = await client.post("/api/sessions", json={"prompt": "go"})
        assert (second.status_code, second.json()["type"]) == (429, "/problems/too-many-sessions")
        async with stream(client, session["id"]) as events:
            await until(events, "result")
        spent = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "more"})
        assert (spent.status_code, spent.json()["type"]) == (429, "/problems/budget-exceeded")
        often = spent
        for _ in range(6):  # turns are counted by the minute, and a new one may begin here
            if often.json()["type"] == "/problems/budget-exceeded":
                often = await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "more"})
        assert (often.status_code, often.json()["type"]) == (429, "/problems/too-many-turns")
        assert int(often.headers["retry-after"]) > 0
