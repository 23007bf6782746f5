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


def script(name: str, tool_input: dict[str, Any]) -> str:
    replies = [{"tools": [{"name": name, "input": tool_input}]}, {"text": "I may not."}]
    return json.dumps({"conversations": {"main": {"replies": replies}}})


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


def deny(rule: str) -> dict[str, Any]:
    return {"permissions": {"deny": [rule]}}


DENY_BY_OUTPUT = """echo '{"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny"}}'"""

DENIALS = [
    pytest.param(TOUCH, ("--permission-mode", "dontAsk"), None, "mode", id="dontAsk"),
    pytest.param(TOUCH, ("--disallowed-tools", "Bash(touch:*)"), None, "rule", id="disallowed rule"),
    pytest.param(TOUCH, ("--disallowed-tools", "Bash"), None, "configuration", id="disallowed tool"),
    pytest.param(ADD, ("--disallowed-tools", "mcp__lab__add"), None, "configuration", id="disallowed MCP tool"),
    pytest.param(ADD, ("--disallowed-tools", "mcp__lab"), None, "configuration", id="disallowed MCP server"),
    pytest.param(ADD, ("--disallowed-tools", "mcp__lab__*"), None, "configuration", id="disallowed MCP tools"),
    pytest.param(TOUCH, (), deny("Bash(touch:*)"), "rule", id="rule in settings"),
    pytest.param(TOUCH, (), deny("Bash"), "cli", id="tool in settings"),
    pytest.param(READ, (), deny("Read(//etc/**)"), "rule", id="files in settings"),
    pytest.param(AGENT, (), deny("Agent(general-purpose)"), "rule", id="agents in settings"),
    pytest.param(TOUCH, (), hook("echo no >&2; exit 2"), "hook", id="hook by its exit code"),
    pytest.param(TOUCH, (), hook(DENY_BY_OUTPUT), "hook", id="hook by its output"),
    pytest.param(ADD, (), hook("echo no >&2; exit 2"), "hook", id="hook of an MCP tool"),
]


@pytest.mark.parametrize(("call", "options", "settings", "who"), DENIALS)
def test_a_call_that_nobody_was_asked_about_says_who_denied_it(
    make_lab: MakeLab,
    call: Call,
    options: tuple[str, ...],
    settings: dict[str, Any] | None,
    who: str,
) -> None:
    done = run(make_lab(script(*call)), *options, settings=settings)
    assert done.tree == [["agent.execute", [CHAT], [f"execute_tool {call[0]} !permission_denied"], [CHAT]]]
    result, span = done.one(protocol.ToolResult).data, done.span(f"execute_tool {call[0]}")
    assert (result.is_error, result.error_type, result.denied_by) == (True, "permission_denied", who)
    assert (span.status, span.attributes["tool.denied_by"]) == (ERROR, who)
    assert span.message == f"{call[0]}: denied ({who})"
    assert done.of(protocol.ApprovalRequest) == []


def test_a_call_that_a_person_denied_says_so(make_lab: MakeLab) -> None:
    runner = make_lab(script(*TOUCH)).start("--prompt", "go")
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


@pytest.mark.parametrize("call", FAILURES.values(), ids=FAILURES)
def test_a_call_that_failed_was_denied_by_nobody(make_lab: MakeLab, call: Call) -> None:
    done = run(make_lab(script(*call)), "--allowed-tools", "Bash,mcp__lab", "--disallowed-tools", "mcp__other,Write")
    result, span = done.one(protocol.ToolResult).data, done.span(f"execute_tool {call[0]}")
    assert (result.error_type, result.denied_by) == ("tool_error", None)
    assert "tool.denied_by" not in span.attributes
