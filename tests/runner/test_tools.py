"""Each tool call on the real CLI is one span, however it ends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, ERROR, MODEL, OK, TOUCH, Lab

MakeLab = Callable[[str], Lab]


def test_one_tool_is_one_span_under_its_turn(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - text: Looking.
                tools: [{name: Bash, input: {command: echo hello}}]
              - text: Done.
    """)
    done = lab.run("--prompt", "go")
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "text", "tool_use", "tool_result", "text", "result", "end"]
    assert [event.seq for event in done.events if event.seq is not None] == list(
        range(1, 1 + sum(event.seq is not None for event in done.events))
    )
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]

    start = done.one(protocol.Start).data
    assert (start.model, start.cwd, start.permission_mode, start.resumed) == (MODEL, str(lab.cwd), "default", False)
    assert "Bash" in start.tools
    call, result = done.one(protocol.ToolUse), done.one(protocol.ToolResult)
    assert (call.data.id, call.data.name, call.data.input) == ("toolu_main_0_1", "Bash", {"command": "echo hello"})
    assert (result.data.content, result.data.bytes, result.data.is_error) == ("hello", 5, False)
    assert done.one(protocol.End).data == protocol.EndData(reason="completed", exit_code=0)

    turn, tool = done.span("agent.execute"), done.span("execute_tool Bash")
    assert (call.trace_id, call.span_id, call.parent_span_id) == (turn.trace_id, tool.span_id, turn.span_id)
    assert result.span_id == tool.span_id
    assert turn.parent_span_id == ""
    assert 0 <= tool.attributes.pop("tool.queue_ms") <= tool.ms
    assert tool.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "Bash",
        "gen_ai.tool.call.id": "toolu_main_0_1",
        "gen_ai.tool.type": "function",
        "gen_ai.conversation.id": start.session_id,
        "session.id": start.session_id,
        "tool.input_size": len(b'{"command":"echo hello"}'),
        "tool.output_size": 5,
        "tool.is_error": False,
        "tool.execution_ms": result.data.duration_ms,
        "tool.approval_wait_ms": 0.0,
        "process.exit.code": 0,
    }
    assert turn.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert turn.attributes["gen_ai.conversation.id"] == start.session_id
    assert turn.attributes["agent.cost_usd"] == done.one(protocol.Result).data.cost_usd > 0


def test_the_first_turn_names_its_model_also_when_the_cli_chose_it(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    done = lab.run("--prompt", "go", env={"AGENT_MODEL": ""})
    model = done.one(protocol.Start).data.model
    assert done.tree == [["agent.execute", [f"chat {model}"]]]
    assert done.span("agent.execute").attributes["gen_ai.request.model"] == model != ""


def test_parallel_tools_are_siblings_that_overlap(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Bash, input: {command: sleep 0.4 && echo one}}
                  - {name: Bash, input: {command: sleep 0.4 && echo two}}
                  - {name: Bash, input: {command: sleep 0.4 && echo three}}
              - text: Done.
    """)
    done = lab.run("--prompt", "go")
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", *["tool_use"] * 3, *["tool_result"] * 3, "text", "result", "end"]
    tool = ["execute_tool Bash"]
    assert done.tree == [["agent.execute", [CHAT], tool, tool, tool, [CHAT]]]
    calls = [span for span in done.spans if span.name == "execute_tool Bash"]
    assert max(span.start for span in calls) < min(span.end for span in calls)
    assert sorted(result.data.content for result in done.of(protocol.ToolResult)) == ["one", "three", "two"]
    assert all(span.attributes["tool.execution_ms"] >= 400 for span in calls)


def test_a_failing_tool_is_an_error_of_the_call_and_not_of_the_turn(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo oops >&2; exit 3}}]
              - text: It failed.
                expect: Exit code 3
    """)
    done = lab.run("--prompt", "go", "--allowed-tools", "Bash")
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "tool_use", "tool_result", "text", "result", "end"]
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash !tool_error"], [CHAT]]]
    result = done.one(protocol.ToolResult).data
    assert (result.is_error, result.error_type, result.exit_code) == (True, "tool_error", 3)
    assert "Exit code 3" in result.content
    tool = done.span("execute_tool Bash !tool_error".removesuffix(" !tool_error"))
    assert (tool.status, tool.attributes["tool.is_error"], tool.attributes["error.type"]) == (ERROR, True, "tool_error")
    assert tool.attributes["tool.execution_ms"] == result.duration_ms
    assert tool.attributes["process.exit.code"] == 3
    assert done.span("agent.execute").status == OK


def test_a_commands_exit_code_is_told_where_the_cli_knows_it(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Bash, input: {command: echo fine}}
                  - {name: Bash, input: {command: grep nothing-like-it /dev/null}}
                  - {name: Bash, input: {command: sh -c 'kill -9 $$'}}
                  - {name: Read, input: {file_path: missing}}
              - text: Done.
    """)
    done = lab.run("--prompt", "go", "--allowed-tools", "Bash")
    # In the order of the calls: the CLI may run the commands at the same time.
    codes = {use.data.id: None for use in done.of(protocol.ToolUse)}
    codes |= {result.data.tool_use_id: result.data.exit_code for result in done.of(protocol.ToolResult)}
    # Of grep that found nothing the CLI says so in words, and not that it ended with 1.
    assert list(codes.values()) == [0, None, 137, None]
    calls = [span for span in done.spans if span.name.startswith("execute_tool")]
    spans = {span.attributes["gen_ai.tool.call.id"]: span for span in calls}
    assert {key: spans[key].attributes.get("process.exit.code") for key in codes} == codes


def test_a_call_tells_how_long_it_waited_for_the_calls_before_it(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Bash, input: {command: touch one}}
                  - {name: Bash, input: {command: touch two}}
              - text: Done.
    """)
    runner = lab.start("--prompt", "go")
    first = runner.until(protocol.ApprovalRequest)
    runner.until(protocol.ToolUse)
    runner.send(protocol.Approval(approval_id=first.data.approval_id, decision="allow"))
    second = runner.until(protocol.ApprovalRequest)
    runner.send(protocol.Approval(approval_id=second.data.approval_id, decision="allow"))
    runner.until(protocol.Result)
    done = runner.finish()
    one, two = sorted((span for span in done.spans if span.name == "execute_tool Bash"), key=lambda span: span.start)
    asked = next(span for span in done.spans if span.parent_span_id == two.span_id)
    assert two.attributes["tool.queue_ms"] == pytest.approx((asked.start - two.start) / 1e6, abs=0.01)
    assert two.start <= one.end <= asked.start
    assert "tool.hook_ms" not in one.attributes


def settle(lab: Lab, **hooks: str) -> None:
    """Write settings of the project with a command as the hook on Bash for each event."""
    settings = {
        "hooks": {
            event: [{"matcher": "Bash", "hooks": [{"type": "command", "command": command}]}]
            for event, command in hooks.items()
        }
    }
    (lab.cwd / ".claude").mkdir()
    (lab.cwd / ".claude" / "settings.json").write_text(json.dumps(settings))


def test_the_input_that_a_hook_put_in_place_of_the_models_is_reported_and_redacted_in_the_span(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(TOUCH)
    edit = {"command": "touch edited # sk-ant-api03-abcdefghijklmnop"}
    decision = {"hookEventName": "PreToolUse", "permissionDecision": "allow", "updatedInput": edit}
    settle(lab, PreToolUse=f"echo {shlex.quote(json.dumps({'hookSpecificOutput': decision}))}")
    done = lab.run("--prompt", "go", "--setting-sources", "project", "--tool-content", "full")
    assert (lab.cwd / "edited").exists()
    assert done.one(protocol.ToolResult).data.executed_input == edit
    bash = done.span("execute_tool Bash").attributes
    assert bash["tool.executed_input_sha256"] == protocol.input_digest(edit)
    assert bash["gen_ai.tool.call.arguments"] == '{"command":"touch edited # [redacted]"}'


def test_the_time_in_hooks_of_settings_is_told_apart(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    settle(lab, PreToolUse="sleep 0.3", PostToolUse="sleep 0.3")
    done = lab.run("--prompt", "go", "--setting-sources", "project", "--allowed-tools", "Bash")
    bash = done.span("execute_tool Bash")
    assert (lab.cwd / "made").exists()
    assert 600 <= bash.attributes["tool.hook_ms"] <= bash.ms
    parts = sum(bash.attributes[f"tool.{name}_ms"] for name in ("queue", "hook", "execution", "approval_wait"))
    assert parts <= bash.ms + 1


def test_an_unknown_tool_and_a_bad_input_are_failed_calls(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: NoSuchTool, input: {a: 1}}
                  - {name: Read, input: {wrong: true}}
              - text: Neither worked.
    """)
    done = lab.run("--prompt", "go")
    assert done.exit_code == 0
    tools = [["execute_tool NoSuchTool !tool_error"], ["execute_tool Read !tool_error"]]
    assert done.tree == [["agent.execute", [CHAT], *tools, [CHAT]]]
    assert [result.data.error_type for result in done.of(protocol.ToolResult)] == ["tool_error", "tool_error"]
