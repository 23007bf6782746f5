"""MCP servers: tools in the runner's process, and servers that cannot be used."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, LAB_SERVER, Finished, Lab, RunnerProcess, SpanView

MakeLab = Callable[[str], Lab]

ADD = """
    conversations:
      main:
        replies:
          - tools:
              - {name: mcp__lab__add, input: {a: 2, b: 3}}
              - {name: mcp__lab__fail, input: {}}
          - text: Five.
            expect: "5"
"""


def test_an_in_process_tool_is_a_call_like_any_other(make_lab: MakeLab) -> None:
    lab = make_lab(ADD)
    done = lab.run("--prompt", "go", *LAB_SERVER, "--allowed-tools", "mcp__lab__add,mcp__lab__fail")
    assert done.exit_code == 0
    calls = [["execute_tool mcp__lab__add"], ["execute_tool mcp__lab__fail !tool_error"]]
    # The mcp package traces its own calls; none of that is in our trace.
    assert done.tree == [["agent.execute", [CHAT], *calls, [CHAT]]]
    added, failed = done.of(protocol.ToolResult)
    assert added.data.content == [{"type": "text", "text": "5"}]
    assert (added.data.bytes, added.data.is_error) == (1, False)
    assert (failed.data.is_error, failed.data.error_type) == (True, "tool_error")
    span = done.span("execute_tool mcp__lab__add")
    assert span.attributes["gen_ai.tool.type"] == "extension"
    assert span.attributes["tool.output_size"] == 1
    assert "gen_ai.tool.call.arguments" not in span.attributes
    assert "gen_ai.tool.call.result" not in span.attributes


def test_an_in_process_tool_needs_a_person_where_it_is_not_allowed(make_lab: MakeLab) -> None:
    lab = make_lab(ADD)
    runner = lab.start("--prompt", "go", *LAB_SERVER, "--allowed-tools", "mcp__lab__fail")
    request = runner.until(protocol.ApprovalRequest)
    assert (request.data.tool_name, request.data.input) == ("mcp__lab__add", {"a": 2, "b": 3})
    runner.send(
        protocol.Approval(approval_id=request.data.approval_id, decision="allow", updated_input={"a": 1, "b": 4})
    )
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    calls = [["execute_tool mcp__lab__add", ["agent.approval"]], ["execute_tool mcp__lab__fail !tool_error"]]
    assert done.tree == [["agent.execute", [CHAT], *calls, [CHAT]]]


def test_odd_characters_in_a_result_break_no_line(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: mcp__lab__odd, input: {}}]
              - text: Done.
    """)
    options = ("--allowed-tools", "mcp__lab__odd", "--tool-content", "full")
    done = lab.run("--prompt", "go", *LAB_SERVER, *options)
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool mcp__lab__odd"], [CHAT]]]
    (block,) = done.one(protocol.ToolResult).data.content
    assert block["text"] == "a\u2028b\u0000c\U0001f980d\ufffde"
    for line in done.lines:
        line.decode("utf-8")
        assert line.count(b"\n") == 1


ANSWERS = "conversations: {main: {replies: [{text: One.}, {text: Two.}]}}"
SECRET = "s3cr3t"
REQUIRE = ("--require-mcp", "on")
GOOD = {"command": sys.executable, "args": [str(Path(__file__).with_name("stdio_server.py"))]}
MISSING = {"command": "/no/such/server", "args": ["--token", SECRET], "env": {"KEY": SECRET}}
EXITS = {"command": "/bin/sh", "args": ["-c", f"echo {SECRET} >&2; exit 3"]}


def servers(**each: object) -> tuple[str, str]:
    return "--mcp-config", json.dumps(each)


def told(done: Finished) -> list[str]:
    return [log.data.text for log in done.of(protocol.Log) if log.data.stream == "runner"]


def missing_at(turn: SpanView) -> dict[str, str]:
    """Return the state of each server that a turn's span says was missing."""
    about = [attributes for name, attributes in turn.events if name == "mcp_server"]
    return {each["mcp.server.name"]: each["mcp.server.status"] for each in about}


def test_servers_that_cannot_be_used_are_told_once_and_are_on_the_span_of_each_turn(make_lab: MakeLab) -> None:
    lab = make_lab(ANSWERS)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        refused = {
            "type": "http",
            "url": f"http://{SECRET}:{SECRET}@{address}/mcp?key={SECRET}",
            "headers": {"X": SECRET},
        }
        options = servers(missing=MISSING, exits=EXITS, refused=refused, shapeless={}, good=GOOD)
        runner = lab.start("--prompt", "go", *options, *LAB_SERVER)
        runner.until(protocol.Result)
        runner.send(protocol.Prompt(text="on"))
        done = runner.finish()
    assert done.exit_code == 0
    expected = {
        "exits": "could not be started or reached, so its tools are missing (Connection closed",
        "missing": "could not be started or reached, so its tools are missing (ENOENT",
        "refused": "could not be started or reached, so its tools are missing (TypeError dialing http",
        "shapeless": "is left out by the CLI, so its tools are missing: it needs a command, or a type and a url",
    }
    for (name, start), text in zip(expected.items(), sorted(told(done)), strict=True):
        assert text.startswith(f"the MCP server {name} {start}")
    assert not any(SECRET.encode() in line for line in done.lines)
    turns = [span for span in done.spans if span.name == "agent.execute"]
    states = {"missing": "failed", "exits": "failed", "refused": "failed", "shapeless": "invalid"}
    assert [missing_at(turn) for turn in turns] == [states, states]
    assert not any(SECRET in str(turn) for turn in turns)


def gated(lab: Lab, *options: str, env: dict[str, str] | None = None) -> RunnerProcess:
    """Start a run whose MCP server has started and waits for the pipe ``go``."""
    up = lab.fifo()
    os.mkfifo(lab.cwd / "go")  # the server alone reads it, so a write waits for the server
    server = {"command": GOOD["command"], "args": [*GOOD["args"], str(lab.cwd)]}
    runner = lab.start("--prompt", "go", *servers(late=server), *options, env=env)
    assert up.read_all() == "up"
    return runner


def test_a_server_that_connects_late_is_told_as_pending_and_then_as_connected(make_lab: MakeLab) -> None:
    lab = make_lab(ANSWERS)
    listed = lab.fifo("listed")
    runner = gated(lab, env={"CLAUDE_CODE_MCP_STARTUP_WAIT_MS": "1"})
    runner.until(protocol.Result)
    (lab.cwd / "go").write_text("go")
    assert listed.read_all() == "listed"
    runner.send(protocol.Prompt(text="on"))
    done = runner.finish()
    assert told(done) == [
        "the MCP server late has not connected yet, so its tools are missing until then",
        "the MCP server late has connected: its tools are there now",
    ]
    turns = [span for span in done.spans if span.name == "agent.execute"]
    assert [missing_at(turn) for turn in turns] == [{"late": "pending"}, {}]


@pytest.mark.parametrize("server", [MISSING, EXITS, {}], ids=["missing", "exits", "shapeless"])
def test_a_required_server_that_cannot_be_used_ends_the_run_before_any_request(
    make_lab: MakeLab, server: dict[str, object]
) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    done = lab.run("--prompt", "go", *servers(broken=server, good=GOOD), *LAB_SERVER, *REQUIRE)
    assert (done.exit_code, done.types) == (2, ["error", "end"])
    assert done.one(protocol.End).data.reason == "misconfigured"
    error = done.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert error.message.startswith("the MCP server broken ")
    assert error.message.endswith("in AGENT_MCP_CONFIG, or set AGENT_REQUIRE_MCP=off to run without it")
    assert "good" not in error.message
    assert SECRET not in error.message
    assert done.tree == [["agent.execute !invalid_request"]]
    assert lab.model.requests == []


def test_a_run_waits_for_a_required_server(make_lab: MakeLab) -> None:
    lab = make_lab(ANSWERS)
    listed = lab.fifo("listed")
    runner = gated(lab, *LAB_SERVER, *REQUIRE, env={"CLAUDE_CODE_MCP_STARTUP_WAIT_MS": "1"})
    (lab.cwd / "go").write_text("go")
    assert listed.read_all() == "listed"
    done = runner.finish()
    assert (done.exit_code, told(done)) == (0, [])
    assert "mcp__late__noop" in done.one(protocol.Start).data.tools
    assert missing_at(done.span("agent.execute")) == {}


def test_a_run_that_waits_for_a_required_server_can_be_stopped(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    runner = gated(lab, *REQUIRE)
    runner.send(protocol.Stop())
    done = runner.finish()
    assert (done.exit_code, done.types) == (0, ["end"])
    assert done.one(protocol.End).data.reason == "stopped"
