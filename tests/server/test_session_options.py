"""A caller of the service sets options of the Claude Agent SDK, as far as the service allows."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import Any

import pytest

from host_client.errors import ConfigurationError
from host_client.service.config import DEFAULT_SESSION_OPTIONS, _session_options  # pyright: ignore[reportPrivateUsage]
from tests.host.test_sdk_options import NUMBER, STRUCTURED
from tests.server.test_sessions import Make
from tests.support.runs import MODEL
from tests.support.service import created, rest, stream, until

pytestmark = pytest.mark.anyio

ALLOWED: dict[str, Any] = {
    "thinking": {"type": "enabled", "budget_tokens": 2222},
    "output_format": {"type": "json_schema", "schema": NUMBER},
    "tools": ["Read"],
}


async def test_options_without_permissions_can_be_set(make_service: Make) -> None:
    lab, host = make_service(STRUCTURED)
    async with lab.start().client() as client:
        session = await created(client, model=MODEL, options=ALLOWED)
        async with stream(client, session["id"]) as events:
            result, _ = await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        body = host.model.requests[0].body
    assert result.data["structured_output"] == {"number": 4}
    assert body["thinking"]["budget_tokens"] == 2222
    assert {tool["name"] for tool in body["tools"]} == {"Read", "StructuredOutput"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"agents": {}, "env": {}},
            "options: agents cannot be set here; allowed: betas, effort, enable_file_checkpointing",
        ),
        ({"permission_mode": "plan"}, "options: permission_mode is a field of the request itself"),
        ({"colour": 1}, "options: colour cannot be set here"),
        ({"effort": "huge"}, "effort takes one of low, medium, high, xhigh, max"),
    ],
)
async def test_other_options_and_wrong_values_are_refused(
    make_service: Make, options: dict[str, Any], told: str
) -> None:
    lab, host = make_service(STRUCTURED)
    async with lab.start().client() as client:
        answer = await client.post("/api/sessions", json={"prompt": "go", "options": options})
        assert (await client.get("/api/sessions")).json()["sessions"] == []
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert not host.model.requests


async def test_the_service_can_allow_more(make_service: Make) -> None:
    lab, host = make_service("conversations: {main: {replies: [{text: Hello.}]}}")
    async with lab.start("--session-options", "agents, effort").client() as client:
        agents = {"reviewer": {"description": "Reviews changes.", "prompt": "You review."}}
        session = await created(client, options={"agents": agents})
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        assert "Reviews changes." in str(host.model.requests[0].body)
        refused = await client.post("/api/sessions", json={"prompt": "go", "options": {"thinking": {}}})
        assert "allowed: agents, effort" in refused.json()["detail"]


async def test_a_text_follows_claude_codes_own_system_prompt(make_service: Make) -> None:
    lab, host = make_service("conversations: {main: {replies: [{text: Hello.}]}}")
    preset = {"type": "preset", "preset": "claude_code"}
    async with lab.start().client() as client:
        session = await created(client, system_prompt={**preset, "append": "Say XYZ."})
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        system = json.dumps(host.model.requests[0].body["system"])
        assert "Claude Code" in system and "Say XYZ." in system
        file = {"type": "file", "path": "/etc/passwd"}
        refused = await client.post("/api/sessions", json={"prompt": "go", "system_prompt": file})
        assert refused.status_code == 422


async def test_the_trace_can_be_read_though_an_option_of_the_session_is_refused_now(make_service: Make) -> None:
    lab, _ = make_service("conversations: {main: {replies: [{text: Hello.}]}}")
    first = lab.start()
    async with first.client() as client:
        session = await created(client, options={"effort": "low"})
        async with stream(client, session["id"]) as events:
            await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
    first.stop()
    with contextlib.closing(sqlite3.connect(lab.store)) as database, database:
        old, new = '"effort":"low"', '"effort":"old"'
        database.execute("UPDATE sessions SET record = CAST(REPLACE(CAST(record AS TEXT), ?, ?) AS BLOB)", (old, new))
    async with lab.start().client() as client:
        answer = await client.get(f"/api/sessions/{session['id']}/trace")
    assert answer.status_code == 200 and "agent.session" in answer.text


async def test_code_of_the_runner_is_no_server_of_a_caller(make_service: Make) -> None:
    lab, _ = make_service(STRUCTURED)
    async with lab.start("--session-options", "all").client() as client:
        options = {"mcp_servers": {"a": "os:environ"}}
        answer = await client.post("/api/sessions", json={"prompt": "go", "options": options})
    assert answer.status_code == 422
    assert "mcp_servers takes programs and addresses here" in answer.json()["detail"]


def test_the_names_of_allowed_options_are_checked() -> None:
    assert _session_options(None) == DEFAULT_SESSION_OPTIONS
    assert _session_options("") == frozenset()
    assert DEFAULT_SESSION_OPTIONS | {"agents", "settings"} < _session_options("all")
    assert "permission_mode" not in _session_options("all"), "it is a field of the request"
    for wrong in ("hooks", "model", "env", "verbatim_prompts", "colour"):
        with pytest.raises(ConfigurationError, match=f"--session-options: {wrong} is none of add_dirs, agents, betas"):
            _session_options(f"effort,{wrong}")
