"""Tools of tenants that the service calls by URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from host_client.errors import ConfigurationError
from host_client.service._tools import read_tenant_tools
from tests.host.test_http_tools import CALL, SCHEMA
from tests.server.test_sessions import Make
from tests.support.service import created, rest, stream, until
from tests.support.tool_server import SECRET, tool_server

pytestmark = pytest.mark.anyio


def tool(**more: Any) -> dict[str, Any]:
    about = {"name": "orders", "description": "Orders of a customer.", "input_schema": SCHEMA}
    return {**about, "url": "http://127.0.0.1:1/", "secret_env": "TOOLS_SECRET", **more}


async def test_an_agent_calls_its_tenants_tool(make_service: Make, tmp_path: Path) -> None:
    lab, _ = make_service(CALL)
    with tool_server(lambda call: (200, b'"three orders"')) as server:
        file = tmp_path / "tools.json"
        file.write_text(json.dumps({"local": [tool(url=server.url)], "other": [tool(name="secret")]}))
        service = lab.start("--host-tools", str(file), env={"TOOLS_SECRET": SECRET})
        async with service.client() as client:
            session = await created(client, allowed_tools=["mcp__host"])
            async with stream(client, session["id"]) as events:
                start, _ = await until(events, "start")
                result, _ = await until(events, "tool_result")
                await client.delete(f"/api/sessions/{session['id']}")
                await rest(events)
    ((_, call),) = server.calls
    assert [name for name in start.data["tools"] if name.startswith("mcp__")] == ["mcp__host__orders"]
    assert result.data["content"] == [{"type": "text", "text": "three orders"}]
    assert (call["tenant_id"], call["session_id"], call["arguments"]) == ("local", session["id"], {"customer": "ada"})


def test_a_tenant_gets_its_own_tools_and_those_of_all(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"*": [tool()], "acme": [tool(name="refund")]}))
    tools = read_tenant_tools(file, {"TOOLS_SECRET": SECRET})
    assert [each.name for each in tools.of("acme")] == ["orders", "refund"]
    assert [each.name for each in tools.of("other")] == ["orders"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "takes lists of tools by tenant"),
        ({"acme": [tool(colour=1)]}, "unknown field `colour`"),
        ({"acme": [tool(), tool()]}, "tenant acme has two tools named orders"),
        ({"*": [tool()], "acme": [tool()]}, "tenant acme has two tools named orders"),
        ({"acme": [tool(secret_env="OTHER")]}, "orders needs its secret in the variable OTHER"),
        ({"acme": [tool(url="orders")]}, "url takes an http or https address"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=told):
        read_tenant_tools(file, {"TOOLS_SECRET": SECRET})


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_tenant_tools(tmp_path / "tools.json", {})
