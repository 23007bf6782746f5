"""Commands on stdin, and the end of stdin."""

from __future__ import annotations

import json
from collections.abc import Callable

from agent_runner.contract import protocol
from agent_runner.contract.protocol import MAX_LINE_BYTES, Prompt, Stop
from tests.support.runs import CHAT, Lab

MakeLab = Callable[[str], Lab]

HI = "conversations: {main: {replies: [{text: Hi.}]}}"
ODD = "a\u2028b\u2029c\x85d\x00e\U0001f980f"
"""Characters at which careless readers of lines break."""


def test_lines_that_are_no_commands_are_protocol_errors_and_the_run_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    runner = lab.start()
    lines = [
        b"not json",
        b"",  # an empty line is nothing
        b"[1,2]",
        b'{"type":"dance"}',
        b'{"no":"type"}',
        b'{"type":"prompt"}',
        b'{"type":"prompt","text":7}',
        b'{"type":"approval","approval_id":"x","decision":"maybe"}',
        b'{"type":"prompt","text":"\xff"}',
        b'{"type":"prompt","text":"cut',
        b"[" * 100_000,
        b'{"type":"prompt","text":"' + b"x" * MAX_LINE_BYTES + b'"}',
    ]
    runner.send_raw(b"\n".join(lines) + b"\n")
    runner.send(Prompt(text="go"))
    done = runner.finish()
    assert done.exit_code == 0
    errors = [error.data for error in done.of(protocol.Error)]
    assert len(errors) == len(lines) - 1
    assert {error.error_type for error in errors} == {"protocol"}
    assert errors[-1].message == f"a command of {len(lines[-1])} bytes is longer than {MAX_LINE_BYTES}"
    assert errors[-2].message == "not a command: nested too deeply"
    assert all(error.message.startswith("not a command: ") for error in errors[:-1])
    assert [kind for kind in done.types if kind != "error"] == ["start", "turn_start", "text", "result", "end"]
    assert done.tree == [["agent.execute", [CHAT]]]


def test_a_command_that_holds_unknown_fields_is_followed(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    runner = lab.start()
    runner.send_raw(b'{"type":"prompt","text":"go","since":"v2"}')  # and without a newline at the end of input
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "text", "result", "end"]


def test_odd_characters_pass_unchanged_and_break_no_line(make_lab: MakeLab) -> None:
    command = "printf 'x\\342\\200\\250y\\000z\\360\\237\\246\\200'"
    lab = make_lab(
        json.dumps(
            {
                "conversations": {
                    "main": {
                        "replies": [
                            {"text": ODD, "tools": [{"name": "Bash", "input": {"command": command}}]},
                            {"text": "lone \ud83e surrogate"},
                        ]
                    }
                }
            }
        )
    )
    runner = lab.start("--allowed-tools", "Bash", "--content", "full")
    # A prompt cut in the middle of an emoji has half of it left.
    runner.send_raw(json.dumps({"type": "prompt", "text": ODD + "\ud83e"}).encode() + b"\n")
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == ["start", "turn_start", "text", "tool_use", "tool_result", "text", "result", "end"]
    for line in done.lines:
        assert json.loads(line.decode("utf-8")) is not None
        assert line.count(b"\n") == 1
    first, last = done.of(protocol.Text)
    assert first.data.text == ODD
    assert last.data.text == "lone \ufffd surrogate"
    assert done.one(protocol.ToolUse).data.input == {"command": command}
    assert done.one(protocol.ToolResult).data.content.startswith("x\u2028y")
    assert done.one(protocol.ToolResult).data.content.endswith("z\U0001f980")
    asked = json.dumps(lab.model.requests[0].body["messages"], ensure_ascii=False)
    assert "\u2028b\u2029c\x85d" in asked
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]


def test_where_nobody_can_be_asked_a_tool_is_denied_and_the_run_ends_well(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch made}}]
              - text: I may not.
                expect: Nobody is there to ask
    """)
    done = lab.run(env={"AGENT_PROMPT": "go"})
    assert done.exit_code == 0
    asked = ["approval_request", "approval_resolved"]
    assert done.types == ["start", "turn_start", "tool_use", *asked, "tool_result", "text", "result", "end"]
    resolved = done.one(protocol.ApprovalResolved).data
    assert (resolved.decision, resolved.decided_by) == ("deny", "runner:no-one-to-ask")
    assert done.one(protocol.ToolResult).data.error_type == "permission_denied"
    tool = ["execute_tool Bash !permission_denied", ["agent.approval"]]
    assert done.tree == [["agent.execute", [CHAT], tool, [CHAT]]]
    assert not (lab.cwd / "made").exists()


def test_stdin_that_ends_while_a_person_is_asked_denies(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch made}}]
              - text: I may not.
    """)
    runner = lab.start("--prompt", "go")
    runner.until(protocol.ApprovalRequest)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.one(protocol.ApprovalResolved).data.decided_by == "runner:no-one-to-ask"
    assert done.types[-3:] == ["text", "result", "end"]
    assert not (lab.cwd / "made").exists()


def test_without_any_prompt_there_is_nothing_to_run(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    done = lab.run()
    assert done.exit_code == 2
    assert done.types == ["error", "end"]
    error = done.one(protocol.Error).data
    assert error.error_type == "invalid_request"
    assert error.message == "no prompt: set AGENT_PROMPT, give --prompt, or send a prompt command"
    assert done.one(protocol.End).data == protocol.EndData(reason="misconfigured", exit_code=2)
    assert lab.model.requests == []


def test_a_stop_before_any_prompt_is_a_run_that_ended_well(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    runner = lab.start()
    runner.send(Stop())
    done = runner.finish()
    assert (done.exit_code, done.types) == (0, ["end"])
    assert done.one(protocol.End).data.reason == "stopped"


def test_a_large_prompt_arrives_whole(make_lab: MakeLab) -> None:
    size = 1_000_000
    lab = make_lab(HI)
    runner = lab.start()
    runner.send(Prompt(text="x" * size + "end"))
    done = runner.finish()
    assert done.exit_code == 0
    assert done.one(protocol.TurnStart).data.prompt_size == size + 3
    assert "xend" in json.dumps(lab.model.requests[0].body["messages"])
