"""Authentication with tokens and cookies, permissions of roles, and limits on guessing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from host_client.service._auth import CACHE_SECONDS, FAILURE_SECONDS, LOCAL, MAX_FAILURES, Authenticator, Failures
from host_client.store._sqlite import SqliteStore
from host_client.store.base import Role, Token
from host_client.store.tokens import new_token
from tests.server.shell import BASE, client, shell, slug

pytestmark = pytest.mark.anyio

Shell = Callable[..., FastAPI]
ORIGIN = {"origin": BASE}


def bearer(plaintext: str) -> dict[str, str]:
    return {"authorization": f"Bearer {plaintext}"}


class Clock:
    """A clock in seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """A store of tokens that counts lookups."""

    def __init__(self, *tokens: Token) -> None:
        self.tokens = {each.digest: each for each in tokens}
        self.asked = 0

    async def find_token(self, digest: str) -> Token | None:
        self.asked += 1
        return self.tokens.get(digest)


@pytest.mark.parametrize(
    ("role", "reads", "decides", "operates"),
    [("viewer", 200, 403, 403), ("approver", 200, 200, 403), ("operator", 200, 200, 200)],
)
async def test_a_role_may_do_what_those_below_it_may(
    make_shell: Shell, tokens: dict[Role, str], role: Role, reads: int, decides: int, operates: int
) -> None:
    async with client(make_shell(), **bearer(tokens[role])) as caller:
        answers = [
            await caller.get("/api/reads"),
            await caller.post("/api/decides"),
            await caller.post("/api/operates"),
        ]
        who = await caller.get("/api/me")
    assert [each.status_code for each in answers] == [reads, decides, operates]
    assert {slug(each) for each in answers if each.status_code == 403} <= {"forbidden"}
    assert who.json() == {"name": role, "tenant_id": "acme", "role": role, "auth": True}


async def test_without_auth_everybody_is_local_whatever_they_send(open_shell: FastAPI) -> None:
    async with client(open_shell, **bearer("sst_wrong")) as caller:
        who = await caller.get("/api/me")
        answer = await caller.post("/api/operates")
        signed_in = await caller.post("/api/login", json={"token": "sst_wrong"})
    assert who.json() == {"name": "local", "tenant_id": None, "role": "operator", "auth": False}
    assert answer.status_code == 200
    assert signed_in.status_code == 204
    assert "set-cookie" not in signed_in.headers
    assert LOCAL.has("approver")
    assert LOCAL.has("operator")


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, None),
        ({"authorization": ""}, "invalid_request"),
        ({"authorization": "Basic YTpi"}, "invalid_request"),
        ({"authorization": "Bearer"}, "invalid_token"),
        ({"authorization": "Bearer sst_"}, "invalid_token"),
        ({"authorization": f"Bearer sst_{'a' * 43}"}, "invalid_token"),
        ({"authorization": f"Bearer sst_{'a' * 100_000}"}, "invalid_token"),
        ({"authorization": "Bearer sst_é'; DROP TABLE tokens; --".encode()}, "invalid_token"),
        ({"cookie": "sandspan_token="}, None),
        ({"cookie": 'sandspan_token="\\377"'}, "invalid_token"),
        ({"cookie": "other=sst_x"}, None),
    ],
)
async def test_what_is_no_token_is_challenged(make_shell: Shell, headers: dict[str, Any], error: str | None) -> None:
    async with client(make_shell()) as caller:
        answer = await caller.get("/api/reads", headers=headers)
    assert answer.status_code == 401
    assert slug(answer) == "unauthenticated"
    expected = 'Bearer realm="sandspan"' + (f', error="{error}"' if error else "")
    assert answer.headers["www-authenticate"] == expected


async def test_a_header_wins_over_a_cookie_and_a_second_header_over_none(
    make_shell: Shell, tokens: dict[Role, str]
) -> None:
    good = bearer(tokens["viewer"])
    async with client(make_shell()) as caller:
        cookie = {"cookie": f"sandspan_token={tokens['viewer']}"}
        assert (await caller.get("/api/reads", headers=cookie)).status_code == 200
        assert (await caller.get("/api/reads", headers={**cookie, **bearer("sst_x")})).status_code == 401
        twice = [*good.items(), *good.items()]
        assert (await caller.get("/api/reads", headers=twice)).status_code == 401


@pytest.mark.parametrize(
    "query", ["token={}", "access_token={}", "a=1&Token={}", "sandspan_token={}", "token=", "%74oken={}"]
)
@pytest.mark.parametrize("path", ["/api/reads", "/api/login", "/", "/api/nowhere"])
async def test_a_token_in_a_url_is_refused_even_a_good_one(
    make_shell: Shell, tokens: dict[Role, str], path: str, query: str
) -> None:
    async with client(make_shell(), **bearer(tokens["viewer"])) as caller:
        answer = await caller.get(f"{path}?{query.format(tokens['viewer'])}")
    assert answer.status_code == 400
    assert slug(answer) == "token-in-url"
    assert "revoke" in answer.json()["detail"]
    assert tokens["viewer"] not in answer.text


async def test_a_token_ends_to_the_second_cached_or_not() -> None:
    clock = Clock()
    plaintext, token = new_token("ada", "acme", "viewer", clock.now + 10)
    app = shell(Authenticator(Counting(token), True, clock=clock, monotonic=Clock()))
    async with client(app, **bearer(plaintext)) as caller:
        clock.now += 9.9
        assert (await caller.get("/api/reads")).status_code == 200
        clock.now += 0.1
        answer = await caller.get("/api/reads")
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


async def test_a_revoked_token_goes_on_for_five_seconds_at_most(store: SqliteStore) -> None:
    clock = Clock()
    plaintext, token = new_token("ada", "acme", "viewer")
    await store.add_token(token)
    async with client(shell(Authenticator(store, True, monotonic=clock)), **bearer(plaintext)) as caller:
        assert (await caller.get("/api/reads")).status_code == 200
        assert await store.remove_token(token.id)
        clock.now += CACHE_SECONDS
        assert (await caller.get("/api/reads")).status_code == 401
    assert CACHE_SECONDS <= 5


async def test_a_new_token_counts_at_once_although_it_was_unknown_before(store: SqliteStore) -> None:
    plaintext, token = new_token("ada", "acme", "viewer")
    async with client(shell(Authenticator(store, True)), **bearer(plaintext)) as caller:
        assert (await caller.get("/api/reads")).status_code == 401
        await store.add_token(token)
        assert (await caller.get("/api/reads")).status_code == 200


async def test_readers_that_come_again_do_not_ask_the_store() -> None:
    plaintext, token = new_token("ada", "acme", "viewer")
    kept = Counting(token)
    async with client(shell(Authenticator(kept, True)), **bearer(plaintext)) as caller:
        for _ in range(30):
            assert (await caller.get("/api/reads")).status_code == 200
    assert kept.asked == 1


async def test_a_store_that_answers_with_another_token_is_not_believed() -> None:
    plaintext, token = new_token("ada", "acme", "viewer")

    class Wrong(Counting):
        async def find_token(self, digest: str) -> Token | None:
            return msgspec.structs.replace(token, digest="0" * 64)

    async with client(shell(Authenticator(Wrong(), True)), **bearer(plaintext)) as caller:
        assert (await caller.get("/api/reads")).status_code == 401


async def test_who_guesses_waits_and_a_valid_token_of_the_same_address_does_not() -> None:
    clock = Clock()
    guess = f"sst_{'x' * 43}"
    cached, first = new_token("ada", "acme", "viewer")
    fresh, second = new_token("bob", "acme", "viewer")
    async with client(shell(Authenticator(Counting(first, second), True, monotonic=clock)), **ORIGIN) as caller:
        assert (await caller.get("/api/reads", headers=bearer(cached))).status_code == 200
        for n in range(MAX_FAILURES):
            assert (await caller.get("/api/reads", headers=bearer(f"sst_{n:043}"))).status_code == 401
        refused = await caller.get("/api/reads", headers=bearer(guess))
        at_login = await caller.post("/api/login", json={"token": guess})
        assert (await caller.get("/api/reads", headers=bearer(cached))).status_code == 200
        assert (await caller.get("/api/reads", headers=bearer(fresh))).status_code == 200
        assert (await caller.post("/api/login", json={"token": fresh})).status_code == 204
        assert (await caller.get("/api/reads", headers=bearer(guess))).status_code == 429
        clock.now += FAILURE_SECONDS
        assert (await caller.get("/api/reads", headers=bearer(guess))).status_code == 401
    assert refused.status_code == at_login.status_code == 429
    assert slug(refused) == "too-many-attempts"
    assert refused.headers["retry-after"] == str(int(FAILURE_SECONDS))


async def test_a_guess_costs_one_read_of_the_store_if_it_has_a_tokens_form_and_else_none() -> None:
    kept = Counting()
    async with client(shell(Authenticator(kept, True, monotonic=Clock()))) as caller:
        for guess in ("x", "sst_short", f"sst_{'x' * 129}", f"sst_{'é' * 43}"):
            await caller.get("/api/reads", headers={b"authorization": f"Bearer {guess}".encode("latin-1")})
        assert kept.asked == 0
        statuses = [
            (await caller.get("/api/reads", headers=bearer(f"sst_{n:043}"))).status_code for n in range(MAX_FAILURES)
        ]
        assert kept.asked == MAX_FAILURES
    assert statuses == [401] * (MAX_FAILURES - 4) + [429] * 4  # malformed tokens were counted, too


async def test_no_token_at_all_is_no_guess(make_shell: Shell) -> None:
    async with client(make_shell()) as caller:
        answers = [await caller.get("/api/reads") for _ in range(MAX_FAILURES + 5)]
    assert {each.status_code for each in answers} == {401}


async def test_addresses_of_one_ipv6_customer_are_one(store: SqliteStore) -> None:
    app = shell(Authenticator(store, True, monotonic=Clock()))
    statuses: list[int] = []
    for n in range(MAX_FAILURES + 1):
        transport = httpx.ASGITransport(app, client=(f"2001:db8::{n:x}", 1))
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as caller:
            statuses.append((await caller.get("/api/reads", headers=bearer("x"))).status_code)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=("2001:db8:0:1::1", 1)), base_url=BASE
    ) as caller:
        statuses.append((await caller.get("/api/reads", headers=bearer("x"))).status_code)
    assert statuses == [401] * MAX_FAILURES + [429, 401]


def test_failures_of_too_many_addresses_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.service._auth.MAX_ADDRESSES", 3)
    failures = Failures(Clock())
    for address in ("a", "b", "c", "d"):
        for _ in range(MAX_FAILURES):
            failures.note(address)
    assert [failures.wait(address) > 0 for address in "abcd"] == [False, True, True, True]


async def test_a_browser_signs_in_and_out(make_shell: Shell, tokens: dict[Role, str]) -> None:
    async with client(make_shell(), **ORIGIN) as browser:
        assert (await browser.get("/api/me")).status_code == 401
        signed_in = await browser.post("/api/login", json={"token": tokens["approver"]})
        assert signed_in.status_code == 204
        assert (await browser.post("/api/decides")).json() == "approver"
        signed_out = await browser.post("/api/logout")
        assert signed_out.status_code == 204
        assert (await browser.get("/api/me")).status_code == 401
    name, *rest = signed_in.headers["set-cookie"].split("; ")
    assert name == f"sandspan_token={tokens['approver']}"
    assert sorted(rest) == ["HttpOnly", "Max-Age=2592000", "Path=/", "SameSite=strict"]
    assert "Max-Age=0" in signed_out.headers["set-cookie"]


async def test_a_cookie_ends_with_its_token(store: SqliteStore, make_shell: Shell) -> None:
    plaintext, token = new_token("ada", "acme", "viewer", 32503680000.0)
    short, soon = new_token("bob", "acme", "viewer", token.created_at + 3600)
    await store.add_token(token)
    await store.add_token(soon)
    async with client(make_shell(), **ORIGIN) as browser:
        long_lived = await browser.post("/api/login", json={"token": plaintext})
        short_lived = await browser.post("/api/login", json={"token": short})
    assert "Max-Age=2592000;" in long_lived.headers["set-cookie"]
    seconds = int(short_lived.headers["set-cookie"].partition("Max-Age=")[2].partition(";")[0])
    assert 0 < seconds <= 3600


@pytest.mark.parametrize(
    "body", [{}, {"token": ""}, {"token": 1}, {"token": "x" * 257}, {"token": "sst_s", "a": 1}, ["sst_s"]]
)
async def test_a_login_that_does_not_fit_is_not_echoed(make_shell: Shell, body: Any) -> None:
    async with client(make_shell(), **ORIGIN) as browser:
        answer = await browser.post("/api/login", json=body)
    assert slug(answer) == "invalid"
    assert "sst_s" not in answer.text
    assert "xxx" not in answer.text


async def test_a_wrong_token_at_login_sets_no_cookie(make_shell: Shell) -> None:
    async with client(make_shell(), **ORIGIN) as browser:
        answer = await browser.post("/api/login", json={"token": f"sst_{'x' * 43}"})
    assert slug(answer) == "unauthenticated"
    assert "set-cookie" not in answer.headers


async def test_many_at_once_are_told_apart(make_shell: Shell, tokens: dict[Role, str]) -> None:
    async with client(make_shell()) as caller:
        roles: list[Role] = ["viewer", "approver", "operator"] * 10
        answers = await asyncio.gather(*(caller.get("/api/me", headers=bearer(tokens[role])) for role in roles))
    assert [each.json()["role"] for each in answers] == roles


def test_a_new_token_is_random_and_kept_as_its_digest_only() -> None:
    made = [new_token("ada", "acme", "viewer") for _ in range(100)]
    assert len({plaintext for plaintext, _ in made}) == len({token.id for _, token in made}) == 100
    plaintext, token = made[0]
    assert plaintext.startswith("sst_")
    assert len(plaintext) >= len("sst_") + 43  # 43 characters hold 32 bytes
    assert plaintext not in repr(token)
