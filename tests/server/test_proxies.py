"""The service trusts forwarded addresses and schemes only from proxies that it was configured to trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from host_client.service._auth import MAX_FAILURES
from host_client.service.config import peers_of
from tests.server.conftest import new_service
from tests.server.scripts import TALK
from tests.server.test_access import token
from tests.support.hosts import HostLab
from tests.support.service import Served, ServiceLab

pytestmark = pytest.mark.anyio
Make = Callable[[str], tuple[ServiceLab, HostLab]]
LOOPBACK = "--auth", "on", "--trusted-proxy", "127.0.0.1"


async def guess(client: httpx.AsyncClient, forwarded_for: str) -> int:
    """Send an unknown token with an X-Forwarded-For header; return the status."""
    headers = {"authorization": f"Bearer sst_{'x' * 43}", "x-forwarded-for": forwarded_for}
    return (await client.get("/api/me", headers=headers)).status_code


async def sign_in(service: Served, secret: str, scheme: str) -> httpx.Response:
    """Log in as a browser through a proxy that reports the page's scheme."""
    origin = service.url.replace("http:", f"{scheme}:")
    async with service.client() as browser:
        headers = {"origin": origin, "x-forwarded-proto": scheme}
        return await browser.post("/api/login", json={"token": secret}, headers=headers)


@pytest.fixture(scope="module")
def trusting() -> Iterator[tuple[ServiceLab, Served]]:
    """Run a service that trusts this machine as a proxy."""
    with ExitStack() as stack:
        lab, _ = new_service(stack, TALK)
        yield lab, lab.start(*LOOPBACK, "--trusted-proxy", "10.0.0.0/8")


async def test_behind_a_trusted_proxy_callers_are_told_apart(trusting: tuple[ServiceLab, Served]) -> None:
    _, service = trusting
    async with service.client() as client:
        assert [await guess(client, "203.0.113.7") for _ in range(MAX_FAILURES)] == [401] * MAX_FAILURES
        assert await guess(client, "203.0.113.7") == 429
        assert await guess(client, "203.0.113.8") == 401
        # The last address that is no trusted proxy counts; a caller can forge those before it.
        assert await guess(client, "203.0.113.8, 203.0.113.7") == 429
        assert await guess(client, "203.0.113.8, 203.0.113.7, 10.1.2.3") == 429
        assert await guess(client, "203.0.113.7, 203.0.113.8") == 401


async def test_without_a_trusted_proxy_forwarded_headers_are_not_heard_and_a_valid_token_gets_through(
    make_service: Make,
) -> None:
    lab, _ = make_service(TALK)
    service = lab.start("--auth", "on", env={"FORWARDED_ALLOW_IPS": "*"})  # uvicorn's variable, here without effect
    async with service.client() as guesser:
        statuses = [await guess(guesser, f"203.0.113.{n}") for n in range(MAX_FAILURES + 1)]
    assert statuses == [401] * MAX_FAILURES + [429]
    secret = token(lab, "acme", "viewer", "ada")
    async with service.client(secret) as client:
        assert (await client.get("/api/me")).json()["name"] == "ada"
    by_tls, plain = await sign_in(service, secret, "https"), await sign_in(service, secret, "http")
    assert (by_tls.status_code, plain.status_code) == (204, 204)
    assert "; Secure" not in by_tls.headers["set-cookie"]


async def test_a_proxy_that_is_not_the_peer_is_not_heard(make_service: Make) -> None:
    lab, _ = make_service(TALK)
    service = lab.start("--auth", "on", "--trusted-proxy", "10.0.0.0/8", env={"FORWARDED_ALLOW_IPS": "*"})
    async with service.client() as client:
        statuses = [await guess(client, f"203.0.113.{n}, 10.0.0.1") for n in range(MAX_FAILURES + 1)]
    assert statuses == [401] * MAX_FAILURES + [429]
    answer = await sign_in(service, token(lab, "acme", "viewer", "ada"), "https")
    assert "; Secure" not in answer.headers["set-cookie"]


async def test_a_cookie_is_secure_where_a_trusted_proxy_says_https(trusting: tuple[ServiceLab, Served]) -> None:
    lab, service = trusting
    secret = token(lab, "acme", "viewer", "ada")
    by_tls, plain = await sign_in(service, secret, "https"), await sign_in(service, secret, "http")
    assert (by_tls.status_code, plain.status_code) == (204, 204)
    assert "; Secure" in by_tls.headers["set-cookie"]
    assert "; Secure" not in plain.headers["set-cookie"]
    no_page = await sign_in(service, secret, "wss")
    assert (no_page.status_code, no_page.json()["type"]) == (403, "/problems/cross-origin")


PROXIES = ("10.0.0.0/8", "192.0.2.1/32", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.0.2.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.9.9.9", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7"),  # an IPv4 peer of a socket that listens on ::
        ("::ffff:192.0.2.1", ["203.0.113.7, ::ffff:10.0.0.1"], "203.0.113.7"),
        ("::ffff:192.0.2.2", ["203.0.113.7"], "::ffff:192.0.2.2"),
        ("192.0.2.2", ["203.0.113.7"], "192.0.2.2"),
        ("203.0.113.9", ["203.0.113.7, 10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.1", ["[2001:db8::7]:4711, 10.0.0.2:80"], "2001:db8::7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # a trusted proxy that is itself the caller
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
    ],
)
async def test_a_callers_address_is_the_last_that_no_trusted_proxy_has(
    peer: str, forwarded_for: list[str], client: str
) -> None:
    seen: list[Any] = []

    async def application(scope: Any, *_: object) -> None:
        seen.append(scope["client"][0])

    async def nothing(*_: object) -> Any:
        raise AssertionError

    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded_for]
    trusting: Any = ProxyHeadersMiddleware(application, peers_of(PROXIES))
    await trusting({"type": "http", "client": (peer, 4711), "scheme": "http", "headers": headers}, nothing, nothing)
    assert seen == [client]
