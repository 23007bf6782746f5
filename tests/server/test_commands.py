"""Callers of the service change and ask a running agent; the outcome is in the session's events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.host.test_session_controls import OTHER, SCRIPT
from tests.server.test_sessions import Make
from tests.support.runs import MODEL
from tests.support.service import created, rest, stream, until

pytestmark = pytest.mark.anyio


async def command(client: httpx.AsyncClient, session: dict[str, Any], **body: Any) -> httpx.Response:
    return await client.post(f"/api/sessions/{session['id']}/commands", json=body)


async def test_an_agent_is_changed_and_asked(make_service: Make) -> None:
    lab, host = make_service(SCRIPT)
    async with lab.start().client() as client:
        session = await created(client, model=MODEL, options={"enable_file_checkpointing": True})
        async with stream(client, session["id"]) as events:

            async def outcome(**body: Any) -> dict[str, Any]:
                sent = await command(client, session, **body)
                assert sent.status_code == 202, sent.text
                event, _ = await until(events, "command_result")
                assert event.data["command_id"] == sent.json()["command_id"]
                assert event.data["command"] == {**body, "requested_by": "local"}
                return event.data

            await until(events, "result")
            assert "error" not in await outcome(type="set_model", model=OTHER)
            assert (await client.get(f"/api/sessions/{session['id']}")).json()["model"] == OTHER
            assert "error" not in await outcome(type="set_permission_mode", mode="acceptEdits")
            await client.post(f"/api/sessions/{session['id']}/turns", json={"text": "write"})
            began, _ = await until(events, "turn_start")
            await until(events, "result")
            file = f"/api/sessions/{session['id']}/files/made.txt"
            assert (await client.get(file)).text == "made"
            assert host.model.requests[-1].body["model"] == OTHER
            assert "error" not in await outcome(type="rewind_files", user_message_id=began.data["user_message_id"])
            assert (await client.get(file)).status_code == 404
            assert (await outcome(type="get_context_usage"))["value"]["model"] == OTHER
            assert (await outcome(type="get_mcp_status"))["value"] == []
            assert (await outcome(type="stop_task", task_id="b1"))["error"] == "no task b1 is running"
            unknown = await outcome(type="toggle_mcp_server", server_name="x", enabled=False)
            assert unknown["error"] == "Server not found: x"
            await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        over = await command(client, session, type="get_mcp_status")
        assert over.status_code == 409


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"type": "stop"}, "`type` must be one of 'set_model', 'set_permission_mode', 'stop_task', 'rewind_files'"),
    ({"type": "set_permission_mode", "mode": "yolo"}, "must be 'default', 'acceptEdits'"),
    ({"type": "set_model", "model": "", "more": 1}, "this field is unknown"),
    ({"type": "stop_task"}, "this field is required"),
    ({}, "the field `type` is required"),
)
"""Bodies of commands, each with a part of the answer to it."""


async def test_a_wrong_command_is_refused(make_service: Make) -> None:
    lab, _ = make_service(SCRIPT)
    async with lab.start().client() as client:
        session = await created(client)
        for body, words in WRONG:
            answer = await command(client, session, **body)
            assert answer.status_code == 422 and words in answer.json()["detail"], answer.text
        await client.delete(f"/api/sessions/{session['id']}")
        async with stream(client, session["id"]) as events:
            await rest(events)
