"""The gateway accepts its token, keeps the key, and streams answers as they arrive."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest

from agent_runner import _gateway as g
from agent_runner._config import ConfigError
from agent_runner._credential import credential
from agent_runner._metering import Meter
from agent_runner.contract import protocol
from host_client.scripted_model._script import Reply
from host_client.scripted_model._stream import encode_event, message_events
from tests.support.runs import CHAT, MODEL, Lab
from tests.support.upstream import Answering, Asked, Upstream, Wire, upstream

MakeLab = Callable[[str], Lab]

KEY = "sk-ant-the-real-key"
MESSAGES = "/v1/messages?beta=true"


@dataclass
class Front:
    """A gateway, the API behind it, and a client with the token."""

    gateway: g.Gateway
    api: Upstream
    client: httpx.AsyncClient
    said: list[str] = field(default_factory=list[str])

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.gateway.url)
        assert url.port is not None
        return url.host, url.port

    async def raw(self, data: bytes) -> bytes:
        """Send raw bytes; return the whole answer."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def front(
    answering: Answering | None = None, *, budget: float | None = None, environ: Mapping[str, str] | None = None
) -> AsyncGenerator[Front]:
    async with upstream(answering or _whole) as api:
        said: list[str] = []
        environ = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.url, **(environ or {})}
        meter = Meter(budget) if budget is not None else None
        async with g.Gateway(credential(environ), said.append, meter) as gateway:
            headers = {"x-api-key": gateway.token}
            async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30, trust_env=False) as client:
                yield Front(gateway, api, client, said)


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert body["type"] == "error" and body["error"]["message"]
    return response.status_code, body["error"]["type"]


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "kind"),
    [
        ("POST", MESSAGES, {"x-api-key": ""}, 401, "authentication_error"),
        ("POST", MESSAGES, {"x-api-key": "sk-ant-a-guess"}, 401, "authentication_error"),
        ("POST", MESSAGES, {"x-api-key": "", "authorization": "Bearer a-guess"}, 401, "authentication_error"),
        ("POST", MESSAGES, {"x-api-key": "", "authorization": "Basic dTpw"}, 401, "authentication_error"),
        ("POST", MESSAGES, {"host": "evil.example"}, 403, "permission_error"),
        ("POST", MESSAGES, {"host": "127.0.0.1"}, 403, "permission_error"),
        ("GET", "/", {"host": "evil.example"}, 403, "permission_error"),
        ("POST", "/v1/files", {}, 404, "not_found_error"),
        ("POST", "/v1/messages/batches", {}, 404, "not_found_error"),
        ("POST", "/v1/messages/", {}, 404, "not_found_error"),
        ("POST", "/v1//messages", {}, 404, "not_found_error"),
        ("GET", "/v1/models", {}, 404, "not_found_error"),
        ("POST", "/api/oauth/token", {}, 404, "not_found_error"),
        ("GET", MESSAGES, {}, 405, "invalid_request_error"),
        ("DELETE", MESSAGES, {}, 405, "invalid_request_error"),
        ("POST", "/", {}, 405, "invalid_request_error"),
    ],
)
async def test_what_the_cli_would_not_ask_is_refused(
    method: str, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    async with front() as this:
        response = await this.client.request(method, path, headers=headers, content=b"{}")
        assert error_of(response) == (status, kind)
        assert this.api.asked == []
        assert len(this.said) == 1 and path.split("?")[0] in this.said[0]


@pytest.mark.anyio
async def test_a_refusal_is_told_once_and_the_token_never() -> None:
    async with front() as this:
        for guess in ("one", "two"):
            await this.client.post(MESSAGES, headers={"x-api-key": guess}, content=b"{}")
        assert this.said == [
            "the gateway refused POST /v1/messages: this gateway accepts the run's own token only",
        ]


@pytest.mark.anyio
async def test_two_tokens_are_none() -> None:
    async with front() as this:
        token = this.gateway.token.encode()
        head = b"POST /v1/messages HTTP/1.1\r\nhost: %b\r\nconnection: close\r\ncontent-length: 2\r\n"
        twice = b"x-api-key: %b\r\n" % token * 2
        answer = await this.raw(head % this.gateway.url.removeprefix("http://").encode() + twice + b"\r\n{}")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert this.api.asked == []


@pytest.mark.anyio
async def test_a_head_without_end_is_refused() -> None:
    async with front() as this:
        with suppress(ConnectionResetError):  # it is not read to its end
            assert (await this.raw(b"POST /v1/messages HTTP/1.1\r\nx: " + b"x" * 200_000)).startswith(b"HTTP/1.1 400 ")
        assert this.api.asked == []


@pytest.mark.anyio
async def test_a_body_that_is_said_to_be_too_long_is_not_read() -> None:
    async with front() as this:
        head = (
            f"POST /v1/messages HTTP/1.1\r\nhost: {this.gateway.url.removeprefix('http://')}\r\nconnection: close\r\n"
            f"x-api-key: {this.gateway.token}\r\ncontent-length: {g.MAX_BODY + 1}\r\n\r\n"
        )
        assert (await this.raw(head.encode())).startswith(b"HTTP/1.1 413 ")
        assert this.api.asked == []


@pytest.mark.anyio
async def test_a_body_without_a_length_is_cut_off_where_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g, "MAX_BODY", 1000)

    async def endless() -> AsyncGenerator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    async with upstream(_never_whole) as api:
        key = credential({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.url})
        async with g.Gateway(key, lambda _text: None) as gateway, httpx.AsyncClient(trust_env=False) as client:
            url, headers = f"{gateway.url}/v1/messages", {"x-api-key": gateway.token}
            response = await client.post(url, headers=headers, content=endless())
        assert error_of(response) == (413, "request_too_large")
        assert api.asked == []
        api.faults.clear()  # half a request, as it should be


async def _never_whole(_asked: Asked, _wire: Wire) -> None:
    raise AssertionError("a request came whole")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_clis_look_at_the_base_is_answered_here(method: str) -> None:
    async with front() as this:
        assert (await this.client.request(method, "/", headers={"x-api-key": ""})).status_code == 200
        assert this.api.asked == [] and this.said == []


# -- the key --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages/count_tokens?beta=true"])
async def test_the_key_takes_the_tokens_place(path: str) -> None:
    brought = {
        "authorization": "Bearer brought",
        "proxy-authorization": "Basic brought",
        "cookie": "brought=1",
        "te": "trailers",
        "accept-encoding": "br",
        "anthropic-beta": "a,b",
        "user-agent": "claude-cli",
    }
    async with front() as this:
        response = await this.client.post(path, headers=brought, content=b'{"hi":1}')
        assert (response.status_code, response.content) == (200, b"{}")
        (asked,) = this.api.asked
        assert (asked.method, asked.target, asked.body) == ("POST", path, b'{"hi":1}')
        assert asked.all("x-api-key") == [KEY]
        assert asked.all("accept-encoding") == ["identity"]
        assert asked.all("anthropic-beta") == ["a,b"]
        assert asked.all("user-agent") == ["claude-cli"]
        assert asked.all("host") == [this.api.url.removeprefix("http://")]
        assert this.gateway.token not in str(asked.headers)
        assert "brought" not in str(asked.headers)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"])
async def test_a_token_of_the_operators_goes_out_as_bearer(name: str) -> None:
    async with front(environ={"ANTHROPIC_API_KEY": "", name: KEY}) as this:
        headers = {
            "authorization": f"Bearer {this.gateway.token}",
            "x-api-key": "",
            "anthropic-beta": "oauth-2025-04-20",
        }
        await this.client.post(MESSAGES, headers=headers, content=b"{}")
        (asked,) = this.api.asked
        assert asked.all("authorization") == [f"Bearer {KEY}"]
        assert asked.all("x-api-key") == []
        assert asked.all("anthropic-beta") == ["oauth-2025-04-20"]


@pytest.mark.anyio
async def test_custom_headers_are_the_gateways_to_add() -> None:
    async with front(environ={"ANTHROPIC_CUSTOM_HEADERS": "X-Team: core\nX-Secret: s3cret"}) as this:
        await this.client.post(MESSAGES, headers={"x-secret": "mine"}, content=b"{}")
        (asked,) = this.api.asked
        assert (asked.all("x-team"), asked.all("x-secret")) == (["core"], ["s3cret"])
        assert "s3cret" not in str(await this.gateway.environment({"ANTHROPIC_CUSTOM_HEADERS": "X-Secret: s3cret"}))


@pytest.mark.anyio
async def test_an_answers_headers_bring_back_neither_key_nor_cookie_nor_redirect() -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        headers = (f"x-debug: got {KEY}", "set-cookie: a=b", "location: http://127.0.0.1:1/", "request-id: req_1")
        await wire.whole(b"moved", "307 Temporary Redirect", *headers)

    async with front(answer) as this:
        response = await this.client.post(MESSAGES, content=b"{}")
        assert response.status_code == 307
        assert response.headers["request-id"] == "req_1"
        assert {"x-debug", "set-cookie", "location"} & set(response.headers) == set()
        assert len(this.api.asked) == 1


def test_without_a_key_there_is_nothing_to_keep() -> None:
    with pytest.raises(ConfigError, match="no key to keep, set ANTHROPIC_AUTH_TOKEN, ANTHROPIC_API_KEY or"):
        credential({"ANTHROPIC_API_KEY": ""})


@pytest.mark.anyio
async def test_a_base_with_a_path_keeps_it() -> None:
    async with upstream(_whole) as api:
        key = credential({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": f"{api.url}/models/anthropic/"})
        async with g.Gateway(key, lambda _text: None) as gateway, httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{gateway.url}{MESSAGES}", headers={"x-api-key": gateway.token}, content=b"{}")
        assert [asked.target for asked in api.asked] == [f"/models/anthropic{MESSAGES}"]


@pytest.mark.anyio
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
async def test_the_api_is_reached_through_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    async with upstream(_whole) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        key = credential({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "http://model.test"})
        async with g.Gateway(key, lambda _text: None) as gateway, httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{gateway.url}/v1/messages", headers={"x-api-key": gateway.token}, content=b"{}")
        assert [asked.target for asked in proxy.asked] == ["http://model.test/v1/messages"]


async def _whole(_asked: Asked, wire: Wire) -> None:
    await wire.whole(b"{}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "told"),
    [("401 Unauthorized", "false"), ("403 Forbidden", "false"), ("429 Too Many Requests", None), ("529 Busy", None)],
)
async def test_only_a_refused_key_is_told_not_to_be_tried_again(status: str, told: str | None) -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.whole(b"{}", status)

    async with front(answer) as this:
        response = await this.client.post(MESSAGES, content=b"{}")
        assert response.headers.get("x-should-retry") == told


# -- how an answer passes -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_the_model_says_is_seen_before_it_says_more() -> None:
    seen = asyncio.Event()

    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.head("200 OK", "content-type: text/event-stream")
        await wire.chunk(b"data: first\n\n")
        await asyncio.wait_for(seen.wait(), 30)
        await wire.chunk(b"data: second\n\n")
        await wire.end()

    async with front(answer) as this, this.client.stream("POST", MESSAGES, content=b"{}") as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"data: first\n\n"
        seen.set()
        assert await anext(chunks) == b"data: second\n\n"
        assert [chunk async for chunk in chunks] == []


@pytest.mark.anyio
async def test_the_models_head_is_seen_before_its_body() -> None:
    seen = asyncio.Event()

    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.head("200 OK", "request-id: req_1")
        await asyncio.wait_for(seen.wait(), 30)
        await wire.end()

    async with front(answer) as this, this.client.stream("POST", MESSAGES, content=b"{}") as response:
        assert response.headers["request-id"] == "req_1"
        seen.set()
        await response.aread()


@pytest.mark.anyio
async def test_a_reader_that_stalls_holds_up_the_model_and_fills_no_memory() -> None:
    sent = 0
    blocked = asyncio.Event()

    async def answer(_asked: Asked, wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        try:
            while sent < 1_000:
                await asyncio.wait_for(wire.chunk(b"x" * 2**20), 1)
                sent += 1
        except TimeoutError:
            blocked.set()

    async with front(answer) as this, this.client.stream("POST", MESSAGES, content=b"{}"):
        await asyncio.wait_for(blocked.wait(), 30)
    assert sent < 100


@pytest.mark.anyio
async def test_a_cli_that_leaves_ends_the_models_answer() -> None:
    ended = asyncio.Event()

    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.head()
        await wire.chunk(b"first")
        if await wire.closed():
            ended.set()

    async with front(answer) as this:
        async with this.client.stream("POST", MESSAGES, content=b"{}") as response:
            await anext(response.aiter_raw())
        await asyncio.wait_for(ended.wait(), 30)


@pytest.mark.anyio
async def test_a_cli_that_leaves_before_the_answer_ends_the_request() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def answer(_asked: Asked, wire: Wire) -> None:
        asked.set()
        if await wire.closed():
            ended.set()

    async with front(answer) as this:
        request = asyncio.ensure_future(this.client.post(MESSAGES, content=b"{}"))
        await asyncio.wait_for(asked.wait(), 30)
        request.cancel()
        await asyncio.wait_for(ended.wait(), 30)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "head", ["Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", "Content-Length: 99\r\n\r\nfirst"]
)
async def test_an_answer_cut_halfway_is_cut_for_the_cli(head: str) -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.send(f"HTTP/1.1 200 OK\r\n{head}".encode())

    async with front(answer) as this, this.client.stream("POST", MESSAGES, content=b"{}") as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"first"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)


@pytest.mark.anyio
async def test_an_error_of_the_model_passes_whole() -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.whole(b'{"type":"error"}', "429 Too Many Requests", "retry-after: 7", "x-should-retry: true")

    async with front(answer) as this:
        response = await this.client.post(MESSAGES, content=b"{}")
        assert (response.status_code, response.content) == (429, b'{"type":"error"}')
        assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("7", "true")


@pytest.mark.anyio
async def test_a_model_that_cannot_be_reached_is_a_502_that_names_its_host() -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        wire.writer.close()

    async with front(answer) as this:
        response = await this.client.post(MESSAGES, content=b"{}")
        assert error_of(response) == (502, "api_error")
        assert response.json()["error"]["message"] == "the model's API at 127.0.0.1: RemoteProtocolError"


@pytest.mark.anyio
async def test_no_more_than_so_many_are_asked_at_once() -> None:
    enough, release = asyncio.Event(), asyncio.Event()
    under_way = most = 0

    async def answer(_asked: Asked, wire: Wire) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == g.MAX_AT_ONCE:
            enough.set()
        await asyncio.wait_for(release.wait(), 30)
        under_way -= 1
        await wire.whole(b"{}")

    async with front(answer) as this:
        requests = [asyncio.ensure_future(this.client.post(MESSAGES, content=b"{}")) for _ in range(g.MAX_AT_ONCE + 5)]
        await asyncio.wait_for(enough.wait(), 30)
        release.set()
        assert {response.status_code for response in await asyncio.gather(*requests)} == {200}
        assert (len(this.api.asked), most) == (g.MAX_AT_ONCE + 5, g.MAX_AT_ONCE)


# -- the budget -----------------------------------------------------------------------------------

START = {"message": {"model": "claude-opus-4-5", "usage": {"input_tokens": 100_000, "output_tokens": 1}}}
"""Half a dollar."""


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


async def half_a_dollar(_asked: Asked, wire: Wire) -> None:
    await wire.head("200 OK", "content-type: text/event-stream")
    await wire.chunk(event("message_start", **START))
    await wire.chunk(event("message_delta", usage={"output_tokens": 0}) + event("message_stop"))
    await wire.end()


@pytest.mark.anyio
async def test_what_the_answers_cost_is_counted_and_then_no_more_is_asked() -> None:
    async with front(half_a_dollar, budget=0.9) as this:
        statuses = [(await this.client.post(MESSAGES, content=b"{}")).status_code for _ in range(2)]
        assert statuses == [200, 200]
        response = await this.client.post(MESSAGES, content=b"{}")
        assert error_of(response) == (402, "billing_error")
        assert response.json()["error"]["message"] == "the run's budget is spent"
        assert len(this.api.asked) == 2


@pytest.mark.anyio
async def test_who_leaves_early_pays_for_what_was_asked() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def answer(about: Asked, wire: Wire) -> None:
        asked.set()
        await asyncio.wait_for(go.wait(), 30)
        await wire.head("200 OK", "content-type: text/event-stream")
        await wire.chunk(event("message_start", **START))
        assert await wire.closed()  # what was to be learnt is known: no more of it is waited for
        counted.set()

    counted = asyncio.Event()
    async with front(answer, budget=0.4) as this:
        request = asyncio.ensure_future(this.client.post(MESSAGES, content=b"{}"))
        await asyncio.wait_for(asked.wait(), 30)
        request.cancel()
        await asyncio.wait((request,))
        go.set()
        await asyncio.wait_for(counted.wait(), 30)
        response = await this.client.post(MESSAGES, content=b"{}")
        assert error_of(response) == (402, "billing_error")


@pytest.mark.anyio
async def test_an_answer_that_cannot_be_counted_is_not_passed_on() -> None:
    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.whole(b"\x1f\x8b", "200 OK", "content-encoding: gzip")

    async with front(answer, budget=1) as this:
        assert error_of(await this.client.post(MESSAGES, content=b"{}")) == (502, "api_error")


# -- with the real CLI ----------------------------------------------------------------------------

LOOK = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "env; cat /proc/self/environ"}}]
          - text: Done.
"""
GATEWAY = ("--gateway", "on", "--permission-mode", "bypassPermissions")


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("ANTHROPIC_API_KEY", "x-api-key", KEY),
        ("CLAUDE_CODE_OAUTH_TOKEN", "authorization", f"Bearer {KEY}"),
        ("ANTHROPIC_AUTH_TOKEN", "authorization", f"Bearer {KEY}"),
    ],
)
def test_the_cli_works_behind_it_and_never_has_the_key(make_lab: MakeLab, name: str, header: str, value: str) -> None:
    lab = make_lab(LOOK)
    journal = lab.root / "journal"
    environ = {"ANTHROPIC_API_KEY": "", "IS_SANDBOX": "1", **{name: KEY}}  # the CLI minds bypassing as root
    done = lab.run("--prompt", "go", "--journal", str(journal), *GATEWAY, env=environ)
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "tool_use", "tool_result", "text", "result", "end"]
    assert [request.headers[header] for request in lab.model.requests] == [value, value]
    assert ("oauth-2025-04-20" in lab.model.requests[0].headers["anthropic-beta"]) is (
        name == "CLAUDE_CODE_OAUTH_TOKEN"
    )
    seen = str(done.one(protocol.ToolResult).data.content)
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:" in seen, "the environment was not looked at"
    assert KEY not in seen
    assert KEY.encode() not in journal.read_bytes()
    assert KEY not in str([request.body for request in lab.model.requests])
    assert KEY not in done.stderr


@pytest.mark.anyio
async def test_a_runs_text_is_told_before_the_model_says_more(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    seen = asyncio.Event()
    reply = Reply(text="Hello there", chunk=5)

    async def answer(_asked: Asked, wire: Wire) -> None:
        await wire.head("200 OK", "content-type: text/event-stream")
        for _, said in message_events(reply, message_id="msg_1", model=MODEL):
            await wire.chunk(encode_event(said))
            if said["type"] == "content_block_delta":
                await asyncio.wait_for(seen.wait(), 60)
        await wire.end()

    async with upstream(answer) as api:
        runner = lab.start("--prompt", "go", "--gateway", "on", env={"ANTHROPIC_BASE_URL": api.url})
        delta = await asyncio.to_thread(runner.until, protocol.TextDelta)
        assert delta.data.text == "Hello"
        seen.set()
        done = await asyncio.to_thread(runner.finish)
    assert done.one(protocol.Text).data.text == "Hello there"
    assert done.exit_code == 0


def test_a_run_without_a_key_is_misconfigured(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    done = lab.run("--prompt", "go", "--gateway", "on", env={"ANTHROPIC_API_KEY": ""})
    assert done.exit_code == 2
    assert "AGENT_GATEWAY=on: no key to keep" in done.one(protocol.Error).data.message


ASK = """
import json, os, urllib.request as u
url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "tool asks"}]}
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
print(u.urlopen(u.Request(url, json.dumps(body).encode(), headers)).status)
"""


def test_a_tool_that_asks_the_model_itself_spends_the_runs_budget(make_lab: MakeLab) -> None:
    replies: Sequence[object] = [
        {"tools": [{"name": "Bash", "input": {"command": f"python3 - <<'E'\n{ASK}E"}}]},
        {"text": "never"},
    ]
    tool = {"when": "tool asks", "replies": [{"text": "Hi.", "usage": {"input_tokens": 1_000_000}}]}
    lab = make_lab(json.dumps({"conversations": {"main": {"replies": replies}, "tool": tool}}))
    done = lab.run("--prompt", "go", "--max-budget-usd", "2", *GATEWAY, env={"IS_SANDBOX": "1"})
    assert str(done.one(protocol.ToolResult).data.content).strip() == "200"
    assert [request.conversation for request in lab.model.requests] == ["main", "tool"]
    assert done.exit_code == 1
    assert done.tree == [
        ["agent.execute !budget_exceeded", [CHAT], ["execute_tool Bash"], [CHAT], [f"{CHAT} !budget_exceeded"]]
    ]
    requests = [span.attributes["chat.request_class"] for span in done.spans if span.name == CHAT]
    assert requests == ["main", "tool", "main"]
    error = done.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("budget_exceeded", False)
    assert done.one(protocol.Result).data.error_type == "budget_exceeded"
    assert done.one(protocol.Result).data.cost_usd < 0.01, "the CLI itself does not know of it"
    assert [log.data.text for log in done.of(protocol.Log)] == [
        "the gateway refused POST /v1/messages: the run's budget is spent"
    ]
