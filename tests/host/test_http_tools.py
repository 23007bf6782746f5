"""Tools of an agent that are called by URL: the signature, the answer, errors and repetition."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, HostTool, events, run_agent
from host_client.client import http_tools
from host_client.client.http_tools import MAX_ANSWER, http_tool
from host_client.errors import ConfigurationError
from tests.support.hosts import host_lab, views
from tests.support.tool_server import SECRET, ToolServer, tool_server

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SCHEMA = {"type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]}
CALL = """
conversations:
  main:
    replies:
      - tools: [{name: mcp__host__orders, input: {customer: ada}}]
      - text: Done.
"""


def orders(url: str, **more: Any) -> HostTool:
    given: dict[str, Any] = {"url": url, "secret": SECRET, **more}
    return http_tool("orders", "Orders of a customer.", SCHEMA, **given)


async def result_of(tool: HostTool) -> tuple[p.ToolResultData, Any]:
    """Run an agent that calls the tool; return the call's result, and that of the run."""
    found: list[p.ToolResultData] = []

    def note(event: p.AnyEvent) -> None:
        if isinstance(event, events.ToolResult):
            found.append(event.data)

    options = AgentOptions(allowed_tools=("mcp__host",))
    with host_lab(CALL) as lab:
        done = await run_agent("go", options, host_tools=[tool], on_event=note, environ=lab.environ)
    (result,) = found
    return result, done


async def test_a_call_is_a_signed_post_in_the_trace() -> None:
    def answer(call: dict[str, Any]) -> tuple[int, bytes]:
        return 200, json.dumps(["one", "two"]).encode()

    with tool_server(answer) as server:
        result, done = await result_of(orders(server.url, context={"tenant_id": "acme"}))
    ((headers, call),) = server.calls
    assert result.content == [{"type": "text", "text": '["one","two"]'}]
    assert (call["tool"], call["arguments"], call["tenant_id"]) == ("orders", {"customer": "ada"}, "acme")
    (span,) = (each for each in views(done.spans) if each.name == "execute_tool mcp__host__orders")
    assert headers["traceparent"].split("-")[1:3] == [span.trace_id, span.span_id]
    assert len(headers["webhook-id"]) > 10


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b'{"error": "there is no such customer"}', "there is no such customer"),
        (500, b"Traceback: secret", "the server of orders answered with 500"),
        (200, b"<html>", "the answer of orders is not JSON"),
        (200, b"NaN", "the answer of orders is not JSON"),
        (200, b"[" * 200_000, "the answer of orders is not JSON"),
        (302, b"", "the server of orders answered with 302"),
        (200, b'"' + b"a" * MAX_ANSWER + b'"', "the answer of orders has more than 8,388,608 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_the_tools_error(status: int, body: bytes, told: str) -> None:
    with tool_server(lambda call: (status, body)) as server:
        result, _ = await result_of(orders(server.url))
    assert result.is_error
    assert told in str(result.content)
    assert "secret" not in str(result.content)


async def test_a_server_that_is_down_is_the_tools_error() -> None:
    with tool_server(lambda call: (200, b"")) as server:
        url = server.url
    result, _ = await result_of(orders(url))
    assert "the server of orders cannot be reached (ConnectError)" in str(result.content)


@pytest.mark.parametrize(("idempotent", "calls"), [(True, 2), (False, 1)])
async def test_only_an_idempotent_call_is_sent_again_and_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch, idempotent: bool, calls: int
) -> None:
    monkeypatch.setattr(http_tools, "PAUSES", (0.0, 0.0))

    def answer(call: dict[str, Any]) -> tuple[int, bytes]:
        return (503, b"") if len(server.calls) == 1 else (200, b'"three orders"')

    server: ToolServer
    with tool_server(answer) as server:
        result, _ = await result_of(orders(server.url, idempotent=idempotent))
    assert result.is_error is not idempotent
    assert len(server.calls) == calls
    assert len({headers["webhook-id"] for headers, _ in server.calls}) == 1


async def test_a_wrong_secret_is_found_by_the_server() -> None:
    with tool_server(lambda call: (200, b"")) as server:
        other = "whsec_" + "b" * 40
        result, _ = await result_of(orders(server.url, secret=other))
    assert "not signed" in str(result.content)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"secret": "hunter2"}, "its secret is not whsec_ and the base64 of at least 24 bytes"),
        ({"secret": "whsec_c2hvcnQ="}, "its secret is not whsec_"),
        ({"secret": "whsec_é"}, "its secret is not whsec_"),
        ({"url": "ftp://host/x"}, "url takes an http or https address, not 'ftp://host/x'"),
        ({"url": "http://[::1/"}, "url takes an http or https address"),
        ({"url": "http://host:99999/"}, "url takes an http or https address"),
        ({"url": "http://host:abc/"}, "url takes an http or https address"),
        ({"url": "http://exa mple/"}, "url takes an http or https address"),
        ({"timeout": 0}, "the timeout of the host tool orders takes seconds above 0"),
    ],
)
async def test_wrong_settings_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        orders(**{"url": "http://127.0.0.1:1/", **given})
    assert "hunter2" not in str(caught.value)
