"""A tool's output of ten megabytes is cut on the wire, and its size is reported."""

from __future__ import annotations

from collections.abc import Callable

from agent_runner._tool_results import MAX_CONTENT, bounded
from agent_runner.contract import protocol
from tests.support.runs import CHAT, LAB_SERVER, Lab

MakeLab = Callable[[str], Lab]

TEN_MB = 10_000_000


def test_ten_megabytes_of_output_are_cut_and_their_size_is_told(make_lab: MakeLab) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools: [{{name: mcp__lab__large, input: {{size: {TEN_MB}}}}}]
              - tools: [{{name: Bash, input: {{command: head -c {TEN_MB} /dev/zero | tr '\\0' x}}}}]
              - text: Done.
    """)
    # The CLI refuses larger MCP results unless told otherwise.
    unlimited = {"MAX_MCP_OUTPUT_TOKENS": "100000000"}
    done = lab.run("--prompt", "go", *LAB_SERVER, "--allowed-tools", "mcp__lab__large,Bash", env=unlimited)
    assert done.exit_code == 0
    tools = [["execute_tool mcp__lab__large"], ["execute_tool Bash"]]
    assert done.tree == [["agent.execute", [CHAT], tools[0], [CHAT], tools[1], [CHAT]]]
    for result, name in zip(done.of(protocol.ToolResult), ("mcp__lab__large", "Bash"), strict=True):
        assert (result.data.bytes, result.data.truncated) == (TEN_MB, True)
        # What the model was given: the CLI puts the rest aside in a file.
        assert "Output too large" in result.data.content
        assert done.span(f"execute_tool {name}").attributes["tool.output_size"] == TEN_MB
        assert done.span(f"execute_tool {name}").attributes["tool.execution_ms"] > 0
    assert max(map(len, done.lines)) < 64 * 1024


def test_a_result_that_the_cli_hands_over_whole_is_cut_for_its_event() -> None:
    text = "é" * TEN_MB
    assert bounded(text) == (text[:MAX_CONTENT], 2 * TEN_MB, True)
    blocks = [{"type": "text", "text": text}, {"type": "image", "source": {"data": "AAAA"}}]
    kept, size, truncated = bounded(blocks)
    assert kept == text[:MAX_CONTENT]
    assert size > 2 * TEN_MB
    assert truncated
    assert bounded([{"type": "text", "text": "é"}]) == ([{"type": "text", "text": "é"}], 2, False)
    assert bounded(None) == ("", 0, False)


def test_an_mcp_result_that_the_cli_saves_in_a_file_has_the_size_of_that_file(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: mcp__lab__large, input: {size: 400000}}]
              - text: Done.
    """)
    done = lab.run("--prompt", "go", *LAB_SERVER, "--allowed-tools", "mcp__lab__large")
    result = done.one(protocol.ToolResult).data
    assert "exceeds maximum allowed tokens" in result.content
    assert (result.bytes, result.truncated) == (400_000, True)
    assert done.span("execute_tool mcp__lab__large").attributes["tool.output_size"] == 400_000
