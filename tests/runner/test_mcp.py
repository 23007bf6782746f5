"""MCP servers in the runner's process."""

from __future__ import annotations

from collections.abc import Callable

from agent_runner.contract import protocol
from tests.support.runs import CHAT, LAB_SERVER, Lab

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
