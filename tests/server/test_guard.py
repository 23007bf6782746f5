"""Requests from other sites, with a forged host name or with an endless body do not reach a route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from host_client.service._auth import Authenticator
from host_client.service._guard import API_POLICY, HEADERS, POLICY, Guard
from host_client.store.base import Role
from tests.server.shell import BASE, PATIENCE, NoTokens, client, send_raw, served, shell, slug

pytestmark = pytest.mark.anyio

Shell = Callable[..., FastAPI]
CONSOLE = "https://console.acme.com"
LIMIT = 64 * 1024


@pytest.fixture
def configured() -> FastAPI:
    """Return an HTTP shell without tokens that has host names and allows the origin of another site."""
    hosts = ("Agents.Acme.com", "10.0.0.5:8443", "[fd00::5]")
    return shell(Authenticator(NoTokens(), False), hosts=hosts, origins=[CONSOLE])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8765", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:65535", 200),
        ("[::1]:8765", 200),
        ("agents.acme.com", 200),
        ("agents.ACME.com:8080", 200),
        ("10.0.0.5:8443", 200),
        ("[fd00::5]:1", 200),
        ("10.0.0.5", 421),
        ("10.0.0.5:8444", 421),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("agents.acme.com.", 421),
        ("xagents.acme.com", 421),
        ("evil.localhost", 421),
        ("0.0.0.0", 421),
        ("[::]", 421),
        ("127.0.0.1.nip.io", 421),
        ("2130706433", 421),
        ("", 400),
        ("localhost:", 400),
        ("localhost:80:80", 400),
        ("localhost@evil.example", 400),
        ("evil.example/localhost", 400),
        ("localhost, evil.example", 400),
        ("localhost evil", 400),
        ("локалхост".encode(), 400),
        ("localhost:123456", 400),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/me"])
async def test_a_host_header_must_name_the_service(configured: FastAPI, path: str, host: Any, status: int) -> None:
    async with client(configured) as caller:
        answer = await caller.get(path, headers={"host": host})
    assert answer.status_code == status
    if status != 200:
        assert slug(answer) == {400: "bad-request", 421: "unknown-host"}[status]


async def test_probes_ask_by_any_name_or_none(open_shell: FastAPI) -> None:
    async with served(open_shell) as port:
        by_name = await send_raw(port, b"GET /healthz HTTP/1.1\r\nhost: 10.1.2.3:8080\r\nconnection: close\r\n\r\n")
        by_none = await send_raw(port, b"GET /healthz HTTP/1.0\r\n\r\n")
        another = await send_raw(port, b"GET /api/me HTTP/1.0\r\n\r\n")
    assert (by_name.status, by_none.status) == (200, 200)
    assert (another.status, another.slug) == (400, "bad-request")


async def test_two_host_headers_are_none(open_shell: FastAPI) -> None:
    twice = b"GET /api/me HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
    async with served(open_shell) as port:
        assert (await send_raw(port, twice)).status == 400
    async with client(open_shell) as caller:  # without uvicorn, which also refuses this
        assert (await caller.get("/api/me", headers=[("host", "localhost"), ("host", "localhost")])).status_code == 400


@pytest.mark.parametrize("bad", ["*", "*.acme.com", "https://acme.com", "acme.com/x", "", "a b", "acme.com:port"])
def test_a_host_that_is_no_name_is_a_mistake_of_whoever_starts_it(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        Guard(FastAPI(), hosts=[bad])


@pytest.mark.parametrize(
    "bad", ["*", "null", "acme.com", "https://acme.com/x", "https://*.acme.com", "file://", "https://a@b"]
)
def test_an_origin_that_is_none_is_a_mistake_of_whoever_starts_it(bad: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        Guard(FastAPI(), origins=[bad])


# -- other origins -----------------------------------------------------------------------------------------

SITES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"origin": "http://localhost:8765"}, True),
    ({"origin": "HTTP://LOCALHOST:8765"}, True),
    ({"origin": "https://localhost:8765"}, True),  # behind a proxy that ends TLS
    ({"origin": CONSOLE}, True),
    ({"origin": CONSOLE, "sec-fetch-site": "cross-site"}, True),
    ({"origin": "http://localhost:8765", "sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "none"}, True),
    ({"origin": "http://localhost"}, False),
    ({"origin": "http://localhost:8766"}, False),
    ({"origin": "http://127.0.0.1:8765"}, False),
    ({"origin": "https://evil.example"}, False),
    ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, False),
    ({"origin": "null"}, False),
    ({"origin": ""}, False),
    ({"origin": "http://localhost:8765.evil.example"}, False),
    ({"origin": "http://localhost:8765@evil.example"}, False),
    ({"origin": "http://localhost:8765, https://evil.example"}, False),
    ({"origin": "ftp://localhost:8765"}, False),
    ({"origin": "http://console.acme.com"}, False),
    ({"origin": f"{CONSOLE}.evil.example"}, False),
    ({"origin": f"{CONSOLE}:8443"}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),  # another port of this machine, or another name of this domain
    ({"sec-fetch-site": "anything"}, False),
]


@pytest.mark.parametrize(("headers", "passes"), SITES)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/decides"), ("GET", "/api/me"), ("GET", "/api/nowhere"), ("DELETE", "/")]
)
async def test_only_our_own_pages_and_programs_are_heard(
    configured: FastAPI, method: str, path: str, headers: dict[str, str], passes: bool
) -> None:
    async with client(configured) as caller:
        answer = await caller.request(method, path, headers=headers)
    if passes:
        assert answer.status_code != 403
    else:
        assert answer.status_code == 403
        assert slug(answer) == "cross-origin"


async def test_behind_tls_a_page_without_is_another_site(open_shell: FastAPI) -> None:
    transport = httpx.ASGITransport(open_shell)
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as caller:
        ours = await caller.post("/api/decides", headers={"origin": "https://localhost:443"})
        plain = await caller.post("/api/decides", headers={"origin": "http://localhost"})
    assert (ours.status_code, plain.status_code) == (200, 403)


async def test_the_default_port_is_the_same_written_or_not(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        for host, origin in [("localhost:80", "http://localhost"), ("localhost", "http://localhost:80")]:
            answer = await caller.post("/api/decides", headers={"host": host, "origin": origin})
            assert answer.status_code == 200


async def test_a_link_from_another_site_leads_to_the_page(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        answer = await caller.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert answer.text == "the page"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 403),
        ({"origin": BASE}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_a_cookie_alone_changes_nothing(
    make_shell: Shell, tokens: dict[Role, str], more: dict[str, str], status: int
) -> None:
    headers = {"cookie": f"a=b; sandspan_token={tokens['operator']}", **more}
    async with client(make_shell()) as caller:
        answer = await caller.post("/api/operates", headers=headers)
        by_token = await caller.post("/api/operates", headers={"authorization": f"Bearer {tokens['operator']}", **more})
        read = await caller.get("/api/reads", headers={"cookie": headers["cookie"]})
    assert answer.status_code == status
    assert by_token.status_code == (200 if not more else status)
    assert read.status_code == 200


# -- allowed origins -----------------------------------------------------------------------------------------


async def test_an_allowed_site_is_told_so_and_no_other(configured: FastAPI) -> None:
    async with client(configured) as caller:
        allowed = await caller.get("/api/me", headers={"origin": CONSOLE})
        own = await caller.get("/api/me")
    assert allowed.headers["access-control-allow-origin"] == CONSOLE
    assert allowed.headers["access-control-allow-credentials"] == "true"
    assert "traceresponse" in allowed.headers["access-control-expose-headers"]
    assert "Origin" in allowed.headers["vary"]
    assert "access-control-allow-origin" not in own.headers


async def test_a_preflight_of_an_allowed_site_is_answered_and_another_refused(
    configured: FastAPI, open_shell: FastAPI
) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,idempotency-key"}
    async with client(configured) as caller:
        allowed = await caller.options("/api/decides", headers={"origin": CONSOLE, **asks})
        refused = await caller.options("/api/decides", headers={"origin": "https://evil.example", **asks})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == CONSOLE
    assert "idempotency-key" in allowed.headers["access-control-allow-headers"]
    assert slug(refused) == "cross-origin"
    assert not [name for name in refused.headers if name.startswith("access-control")]
    async with client(open_shell) as caller:  # without allowed origins
        refused = await caller.options("/api/decides", headers={"origin": CONSOLE, **asks})
    assert slug(refused) == "cross-origin"
    assert "access-control-allow-origin" not in refused.headers


async def test_errors_of_routes_reach_an_allowed_site(configured: FastAPI) -> None:
    async with client(configured) as caller:
        answer = await caller.get("/api/fails/bug", headers={"origin": CONSOLE})
    assert slug(answer) == "internal"
    assert answer.headers["access-control-allow-origin"] == CONSOLE


# -- bodies ------------------------------------------------------------------------------------------------

START = b"POST /api/raw HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b"a" * size)


async def test_a_body_up_to_the_limit_passes(open_shell: FastAPI) -> None:
    chunks = [chunk(LIMIT // 4)] * 4
    async with served(open_shell) as port:
        counted = await send_raw(port, START + b"connection: close\r\ncontent-length: %d\r\n\r\n" % LIMIT, b"a" * LIMIT)
        chunked = await send_raw(
            port, START + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"
        )
    assert (counted.status, counted.body) == (200, b"%d" % LIMIT)
    assert (chunked.status, chunked.body) == (200, b"%d" % LIMIT)


async def test_a_body_over_the_limit_is_refused_unread_and_the_connection_ends(open_shell: FastAPI) -> None:
    async with served(open_shell) as port:
        counted = await send_raw(port, START + b"content-length: %d\r\n\r\n" % (LIMIT + 1))
        huge = await send_raw(port, START + b"content-length: %s\r\n\r\n" % (b"9" * 18))
        chunked = await send_raw(
            port, START + b"transfer-encoding: chunked\r\n\r\n", *[chunk(LIMIT // 4)] * 4, chunk(1)
        )
    for answer in (counted, huge, chunked):
        assert (answer.status, answer.slug) == (413, "too-large")
        assert answer.headers["connection"] == "close"


async def test_a_chunked_body_over_the_limit_is_refused_where_json_is_read(open_shell: FastAPI) -> None:
    start = START.replace(b"/api/raw", b"/api/notes") + b"transfer-encoding: chunked\r\n\r\n"
    async with served(open_shell) as port:
        answer = await send_raw(port, start, *[chunk(LIMIT // 4)] * 5)
    assert (answer.status, answer.slug) == (413, "too-large")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("text/plain; application/json", 415),
        ("", 415),
        (None, 415),
    ],
)
async def test_a_body_must_say_that_it_is_json(open_shell: FastAPI, kind: str | None, status: int) -> None:
    headers = {"content-type": kind} if kind is not None else {}
    async with client(open_shell) as caller:
        answer = await caller.post("/api/notes", content=b'{"text": "x"}', headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert slug(answer) == "unsupported-media-type"


async def test_no_body_needs_no_type(open_shell: FastAPI) -> None:
    async with client(open_shell) as caller:
        assert (await caller.post("/api/decides")).status_code == 200
        assert (await caller.post("/api/decides", headers={"content-length": "0"})).status_code == 200


# -- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/api/me", "/api/nowhere", "/api/fails/bug", "/api/fails/store", "/?token=x", "/openapi.json"],
)
async def test_every_answer_has_the_security_headers(configured: FastAPI, path: str) -> None:
    async with client(configured) as caller:
        answers = [
            await caller.get(path),
            await caller.post(path, content=b"x"),
            await caller.get(path, headers={"host": "x"}),
        ]
    policy = API_POLICY if path.startswith("/api/") else POLICY
    for answer in answers:
        assert {**HEADERS, "content-security-policy": policy}.items() <= dict(answer.headers).items()
        assert (answer.headers.get("cache-control") == "no-store") == path.startswith("/api/")


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert rules["form-action"] == rules["script-src"] == rules["connect-src"] == "'self'"
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:"} & set(" ".join(rules.values()).split())


@pytest.mark.parametrize("name", ["a%0D%0Aset-cookie:%20b=c", "a%0Ab", "a%0Db", "a%00b"])
async def test_a_line_break_in_a_header_of_ours_never_leaves(open_shell: FastAPI, name: str) -> None:
    async with served(open_shell) as port:
        answer = await send_raw(
            port, f"GET /api/named?name={name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        good = await send_raw(port, b"GET /api/named?name=ok HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert (answer.status, answer.slug) == (500, "internal")
    assert "set-cookie" not in answer.headers
    assert "content-security-policy" in answer.headers
    assert good.headers["content-disposition"] == "attachment; filename=ok"


@pytest.mark.parametrize("line", [b"x-a: b\rc: d", b"x-a: b\0c", b"x a: b", b"x-a : b"])
async def test_a_header_of_a_callers_that_is_none_is_refused(open_shell: FastAPI, line: bytes) -> None:
    async with served(open_shell) as port:
        answer = await send_raw(
            port, b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + line + b"\r\n\r\n"
        )
    assert answer.status == 400


async def test_events_pass_as_they_come(open_shell: FastAPI) -> None:
    async with served(open_shell) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        first = await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), PATIENCE)
        writer.close()
        await writer.wait_closed()
    assert b"cache-control: no-store" in head
    assert head.lower().count(b"cache-control") == 1
    assert b"data: 1" in first
