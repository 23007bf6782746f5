"""An operator changes the running agent on the page, and everybody sees what was changed."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from agent_runner.contract import protocol as p
from tests.page.logs import begin, call, done, end_turn
from tests.support.browser import Windows, ready
from tests.support.page_server import OPERATOR, Log, PageServer

USAGE = {
    "totalTokens": 12_843,
    "maxTokens": 200_000,
    "percentage": 6.4,
    "categories": [
        {"name": "System tools", "tokens": 11_291, "kind": "used"},
        {"name": "Free space", "tokens": 154_157, "kind": "free"},
    ],
}


@pytest.fixture
def log(server: PageServer) -> Log:
    log = server.log("session-1")
    begin(log)
    return log


def opened(windows: Windows, server: PageServer, log: Log) -> Page:
    """Open the session with the tab of the agent, when all events are shown."""
    page = windows.open(server.session_url(log))
    ready(page, len(log.events))
    page.get_by_role("tab", name="Agent").click()
    return page


def result(log: Log, command: dict[str, Any], **more: Any) -> None:
    log.add(p.CommandResultData(command=command, **more))


def test_the_model_and_the_permissions_are_changed(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    model = page.get_by_role("textbox", name="Model")
    expect(model).to_have_value("claude-sonnet-4-5")
    model.fill("claude-haiku-4-5")
    with page.expect_response("**/commands"):
        page.get_by_role("button", name="Use this: Model").click()
    page.get_by_role("combobox", name="Permissions").select_option("plan")
    with page.expect_response("**/commands"):
        page.get_by_role("button", name="Use this: Permissions").click()
    assert server.decisions == [
        {"type": "set_model", "model": "claude-haiku-4-5"},
        {"type": "set_permission_mode", "mode": "plan"},
    ]
    changed = {"type": "set_model", "model": "claude-haiku-4-5", "requested_by": "ana"}
    server.play(lambda: result(log, changed))
    expect(page.locator(".note").last).to_have_text("Model set to claude-haiku-4-5 by ana")
    refused = {"type": "set_permission_mode", "mode": "bypassPermissions"}
    server.play(lambda: result(log, refused, error="it was not launched with it"))
    expect(page.locator(".notice").last).to_have_text(
        "Refused to set the permission mode to bypassPermissions: it was not launched with it"
    )
    expect(page.get_by_role("combobox", name="Permissions")).to_have_value("default")  # not what was refused
    server.play(lambda: log.add(p.AgentChangedData(model="claude-haiku-4-5-20251001", permission_mode="acceptEdits")))
    expect(page.get_by_role("combobox", name="Permissions")).to_have_value("acceptEdits")
    page.get_by_role("tab", name="About").click()
    expect(page.locator(".about")).to_contain_text("claude-haiku-4-5-20251001")


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ({"type": 5}, None),
        ({"type": "set_model", "model": {"toString": 1}, "requested_by": {"toString": 1}}, None),
        ({"type": "get_mcp_status"}, [None, 5, {"name": {"toString": 1}}, *({"name": str(n)} for n in range(20_000))]),
        ({"type": "get_context_usage"}, {"totalTokens": 1, "maxTokens": {"toString": 1}, "categories": [None]}),
    ],
)
def test_a_forged_outcome_does_not_stop_the_page(
    server: PageServer, windows: Windows, log: Log, command: dict[str, Any], value: Any
) -> None:
    result(log, command, value=value)
    end_turn(log)
    page = opened(windows, server, log)
    expect(page.get_by_role("button", name="Use this: Model")).to_be_enabled()


def test_background_work_is_stopped_one_by_one(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b", "Bash", {"command": "make"})
    task: dict[str, Any] = {"task_id": "b1", "kind": "local_bash", "description": "make all", "tool_use_id": "b"}
    log.add(p.BackgroundTaskData(**task, state="running"))
    done(log, "b", "Command running in background")
    end_turn(log)
    page = opened(windows, server, log)
    row = page.locator(".agent-list li").filter(has_text="make all")
    with page.expect_response("**/commands"):
        row.get_by_role("button", name="Stop").click()
    assert server.decisions == [{"type": "stop_task", "task_id": "b1"}]
    server.play(lambda: log.add(p.BackgroundTaskData(**task, state="stopped")))
    expect(page.get_by_text("Nothing runs in the background.")).to_be_visible()


def test_the_context_and_the_servers_are_shown_when_asked_for(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    show = page.get_by_role("button", name="Show")
    with page.expect_response("**/commands"):
        show.first.click()
    with page.expect_response("**/commands"):
        show.last.click()
    assert [each["type"] for each in server.decisions] == ["get_context_usage", "get_mcp_status"]
    servers: list[dict[str, Any]] = [{"name": "tickets", "status": "failed", "error": "no <b>route</b>", "tools": []}]
    server.play(lambda: result(log, {"type": "get_context_usage"}, value=USAGE))
    server.play(lambda: result(log, {"type": "get_mcp_status"}, value=servers))
    expect(page.locator(".context")).to_contain_text("12,843 of 200,000 tokens (6 %)")
    expect(page.locator(".context tr")).to_have_text(["System tools11,291"])
    row = page.locator(".agent-list li").filter(has_text="tickets")
    expect(row).to_contain_text("failed: no <b>route</b>")
    with page.expect_response("**/commands"):
        row.get_by_role("button", name="Connect again").click()
    expect(page.locator(".item[data-kind=note]")).to_have_count(1)  # of the sandbox: questions leave none


def test_files_are_set_back_to_a_prompt_after_a_question(server: PageServer, windows: Windows) -> None:
    log = server.log("session-1")
    begin(log, options=["enable_file_checkpointing"], message="7e57-id")
    end_turn(log)
    page = opened(windows, server, log)
    page.get_by_role("button", name="Set files back to here").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert server.decisions == []
    page.get_by_role("button", name="Set files back to here").click()
    with page.expect_response("**/commands"):
        page.get_by_role("dialog").get_by_role("button", name="Set files back").click()
    assert server.decisions == [{"type": "rewind_files", "user_message_id": "7e57-id"}]
    server.play(lambda: log.add(p.TurnStartData(turn=2, prompt_size=0)))
    expect(page.get_by_role("button", name="Set files back to here")).to_be_hidden()  # tools may change files


def test_a_session_without_checkpoints_offers_no_way_back(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    expect(page.get_by_role("button", name="Set files back to here")).to_have_count(0)


def test_who_may_not_write_has_no_such_tab(server: PageServer, windows: Windows, log: Log) -> None:
    server.me = {**OPERATOR, "name": "ben", "role": "approver", "auth": True}
    page = windows.open(server.session_url(log))
    ready(page, len(log.events))
    expect(page.get_by_role("tab")).to_have_text(["Events", "Tools", "About"])


def test_a_session_that_is_over_takes_no_commands(server: PageServer, windows: Windows, log: Log) -> None:
    log.say("closed", reason="closed", cost_usd=0.0, closed_by="local")
    page = opened(windows, server, log)
    expect(page.get_by_role("textbox", name="Model")).to_be_disabled()
