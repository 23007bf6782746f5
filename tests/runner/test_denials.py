"""A denied tool call says who denied it, and is told apart from one that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, ERROR, LAB_SERVER, Finished, Lab

MakeLab = Callable[[str], Lab]
Call = tuple[str, dict[str, Any]]

TOUCH: Call = ("Bash", {"command": "touch made"})
ADD: Call = ("mcp__lab__add", {"a": 1, "b": 2})
READ: Call = ("Read", {"file_path": "/etc/hostname"})
AGENT: Call = ("Agent", {"description": "d", "prompt": "p", "subagent_type": "general-purpose"})


def script(*calls: Call) -> str:
    replies = [{"tools": [{"name": name, "input": tool_input}]} for name, tool_input in calls]
    return json.dumps({"conversations": {"main": {"replies": [*replies, {"text": "I may not."}]}}})


def run(lab: Lab, *options: str, settings: dict[str, Any] | None = None) -> Finished:
    """Run a lab with the settings of a project."""
    if settings is not None:
        (lab.cwd / ".claude").mkdir()
        (lab.cwd / ".claude" / "settings.json").write_text(json.dumps(settings))
    done = lab.run("--prompt", "go", *LAB_SERVER, "--setting-sources", "project", *options)
    assert done.exit_code == 0
    assert not (lab.cwd / "made").exists()
    return done


def hook(command: str) -> dict[str, Any]:
    return {"hooks": {"PreToolUse": [{"matcher": ".*", "hooks": [{"type": "command", "command": command}]}]}}


def deny(*rules: str) -> dict[str, Any]:
    return {"permissions": {"deny": rules}}


DENY_BY_OUTPUT = """echo '{"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny"}}'"""
FILES, AGENTS = "Read(//etc/**)", "Agent(general-purpose)"

DENIALS = [
    pytest.param([(TOUCH, "mode")], ("--permission-mode", "dontAsk"), None, id="dontAsk"),
    pytest.param(
        [(TOUCH, "rule"), (ADD, "configuration"), (READ, "rule"), (AGENT, "rule")],
        ("--disallowed-tools", "Bash(touch:*),mcp__lab__add"),
        deny(FILES, AGENTS),
        id="disallowed rule and MCP tool, files and agents in settings",
    ),
    pytest.param(
        [(TOUCH, "configuration"), (ADD, "configuration")],
        ("--disallowed-tools", "Bash,mcp__lab"),
        None,
        id="disallowed tool and MCP server",
    ),
    pytest.param(
        [(TOUCH, "rule"), (ADD, "configuration")],
        ("--disallowed-tools", "mcp__lab__*"),
        deny("Bash(touch:*)"),
        id="rule in settings and disallowed MCP tools",
    ),
    pytest.param([(TOUCH, "cli")], (), deny("Bash"), id="tool in settings"),
    pytest.param([(TOUCH, "hook"), (ADD, "hook")], (), hook("echo no >&2; exit 2"), id="hook by its exit code"),
    pytest.param([(TOUCH, "hook")], (), hook(DENY_BY_OUTPUT), id="hook by its output"),
]


@pytest.mark.parametrize(("denied", "options", "settings"), DENIALS)
def test_a_call_that_nobody_was_asked_about_says_who_denied_it(
    make_lab: MakeLab, denied: list[tuple[Call, str]], options: tuple[str, ...], settings: dict[str, Any] | None
) -> None:
    done = run(make_lab(script(*(call for call, _ in denied))), *options, settings=settings)
    calls = [[[f"execute_tool {call[0]} !permission_denied"], [CHAT]] for call, _ in denied]
    assert done.tree == [["agent.execute", [CHAT], *(span for each in calls for span in each)]]
    for (call, who), each in zip(denied, done.of(protocol.ToolResult), strict=True):
        result, span = each.data, done.span(f"execute_tool {call[0]}")
        assert (result.is_error, result.error_type, result.denied_by) == (True, "permission_denied", who)
        assert (span.status, span.attributes["tool.denied_by"]) == (ERROR, who)
        assert span.message == f"{call[0]}: denied ({who})"
    assert done.of(protocol.ApprovalRequest) == []


def test_a_call_that_a_person_denied_says_so(make_lab: MakeLab) -> None:
    runner = make_lab(script(TOUCH)).start("--prompt", "go")
    request = runner.until(protocol.ApprovalRequest)
    runner.send(protocol.Approval(approval_id=request.data.approval_id, decision="deny", decided_by="ann"))
    done = runner.finish()
    assert done.one(protocol.ToolResult).data.denied_by == "approval"
    assert done.span("execute_tool Bash").attributes["tool.denied_by"] == "approval"


def test_a_subagents_call_says_who_denied_it(make_lab: MakeLab) -> None:
    start = {"name": AGENT[0], "input": {**AGENT[1], "run_in_background": False}}
    call = {"name": TOUCH[0], "input": TOUCH[1]}
    conversations = {
        "main": {"replies": [{"tools": [start]}, {"text": "It may not."}]},
        "sub": {"when": "p", "replies": [{"tools": [call]}, {"text": "I may not."}]},
    }
    done = run(make_lab(json.dumps({"conversations": conversations})), "--disallowed-tools", "Bash(touch:*)")
    assert done.span("execute_tool Bash").attributes["tool.denied_by"] == "rule"


FAILURES: dict[str, Call] = {
    "unknown tool": ("NoSuchTool", {}),
    "unknown MCP tool": ("mcp__lab__nothing", {}),
    "bad input": ("Read", {"wrong": True}),
    "output like a hook's": ("Bash", {"command": "echo 'PreToolUse:Bash hook error: no'; exit 2"}),
    "result like a hook's": ("mcp__lab__forge", {}),
}


def test_a_call_that_failed_was_denied_by_nobody(make_lab: MakeLab) -> None:
    options = ("--allowed-tools", "Bash,mcp__lab", "--disallowed-tools", "mcp__other,Write")
    done = run(make_lab(script(*FAILURES.values())), *options)
    for (why, call), result in zip(FAILURES.items(), done.of(protocol.ToolResult), strict=True):
        assert (result.data.error_type, result.data.denied_by) == ("tool_error", None), why
        assert "tool.denied_by" not in done.span(f"execute_tool {call[0]}").attributes
