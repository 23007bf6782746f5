"""Spans of model requests have correct times, tokens and stop reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, MODEL, Lab

MakeLab = Callable[[str], Lab]
Json = dict[str, Any]


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_a_model_request_tells_its_times_its_tokens_and_how_it_ended(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - text: One two three.
                thinking: Hm.
                delay: 0.3
                first_token_after: 0.4
                usage:
                  {input_tokens: 3, cache_read_input_tokens: 50, cache_creation_input_tokens: 700, output_tokens: 42}
                tools: [{name: Bash, input: {command: echo hello}}]
              - text: Done.
                stop_reason: stop_sequence
                model: claude-haiku-4-5
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
    first, second = (span for span in done.spans if span.name == CHAT)
    session = done.one(protocol.Start).data.session_id
    first_chunk = first.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0.7 <= first_chunk < 10
    assert first_chunk * 1000 <= first.ms < 10_000
    shown = first.attributes.pop("gen_ai.output.messages")
    (message,) = json.loads(shown)
    assert (message["role"], message["finish_reason"]) == ("assistant", "tool_use")
    assert message["parts"] == [
        {"type": "text", "content": "One two three."},
        {"type": "tool_call", "id": done.one(protocol.ToolUse).data.id, "name": "Bash"},
    ]
    api = urlsplit(lab.model.url)
    only_gateway: dict[str, object] = {
        "gen_ai.request.max_tokens": 32000,
        "server.address": api.hostname,
        "server.port": api.port,
        "http.response.status_code": 200,
        "chat.request_class": "main",
    }
    if gateway == "on":
        assert 200 < first.attributes.pop("chat.first_byte_ms") < first_chunk * 1000
    assert first.attributes == {
        **(only_gateway if gateway == "on" else {}),
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": "msg_main_0",
        "gen_ai.response.finish_reasons": ["tool_use"],
        "gen_ai.usage.input_tokens": 753,
        "gen_ai.usage.cache_read.input_tokens": 50,
        "gen_ai.usage.cache_write.input_tokens": 700,
        "gen_ai.usage.output_tokens": 42,
        "gen_ai.conversation.id": session,
        "session.id": session,
    }
    assert first.kind == 3  # client
    assert second.attributes["gen_ai.request.model"] == MODEL
    assert second.attributes["gen_ai.response.model"] == "claude-haiku-4-5"
    assert second.attributes["gen_ai.response.finish_reasons"] == ["stop_sequence"]
    # One after the other, within the turn.
    turn, tool = done.span("agent.execute"), done.span("execute_tool Bash")
    assert turn.start <= first.start <= first.end <= second.start <= turn.end
    assert first.start <= tool.start <= tool.end <= turn.end
    assert [thought.data.text for thought in done.of(protocol.Thinking)] == ["Hm."]
    assert done.one(protocol.Thinking).span_id == first.span_id


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_tokens_that_only_the_end_of_a_response_tells_are_counted(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - text: Hi.
                usage:
                  input_tokens: 3
                  cache_read_input_tokens: 50
                  cache_creation_input_tokens: 7
                  output_tokens: 42
                  at_end: true
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    chat = done.span(CHAT).attributes
    names = ("input_tokens", "cache_read.input_tokens", "cache_write.input_tokens", "output_tokens")
    assert [chat[f"gen_ai.usage.{name}"] for name in names] == [60, 50, 7, 42]


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_text_arrives_live_before_it_arrives_whole(make_lab: MakeLab, gateway: str) -> None:
    text = "word " * 200
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - {{text: {text!r}, pace: 0.005, chunk: 5}}
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    deltas = done.of(protocol.TextDelta)
    assert "".join(delta.data.text for delta in deltas) == text
    # Coalesced: never one per token at full speed.
    assert 2 <= len(deltas) <= 100
    assert {delta.seq for delta in deltas} == {None}
    assert {delta.data.message_id for delta in deltas} == {"msg_main_0"}
    kinds = [event.type for event in done.events]
    assert max(n for n, kind in enumerate(kinds) if kind == "text_delta") < kinds.index("text")
    assert {delta.span_id for delta in deltas} == {done.span(CHAT).span_id}
    assert done.one(protocol.Text).span_id == done.span(CHAT).span_id


def messages(attributes: Json, name: str) -> list[Json]:
    return json.loads(attributes[f"gen_ai.{name}"])


def test_reasoning_tokens_and_effort_are_told(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - text: Hi.
                usage: {output_tokens: 42, more: {output_tokens_details: {thinking_tokens: 30}}, at_end: true}
    """)
    done = lab.run("--prompt", "go", "--model", "claude-opus-4-6", env={"CLAUDE_CODE_EFFORT_LEVEL": "low"})
    chat = done.span("chat claude-opus-4-6").attributes
    assert (chat["gen_ai.usage.output_tokens"], chat["gen_ai.usage.reasoning.output_tokens"]) == (42, 30)
    assert chat["gen_ai.request.reasoning.level"] == "low"


def test_full_content_has_whole_requests_but_no_whole_files(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - thinking: Hm.
                tools: [{name: Read, input: {file_path: long.txt}}]
              - text: Done.
    """)
    for name in ("long.txt", "named.txt", "CLAUDE.md"):
        (lab.cwd / name).write_text(f"begin of {name}\n" + "line\n" * 500 + f"end of {name}\n")
    prompt = "Look at @named.txt: " + "word " * 300 + "end"  # longer than an excerpt
    done = lab.run(
        *("--prompt", prompt, "--content", "full", "--tool-content", "full"),
        *("--setting-sources", "project", "--verbatim-prompts", "off", "--allowed-tools", "Read"),
    )
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Read"], [CHAT]]]
    first, second = (span.attributes for span in done.spans if span.name == CHAT)
    everything = repr([span.attributes for span in done.spans])
    assert [name for name in ("long.txt", "named.txt", "CLAUDE.md") if f"end of {name}" in everything] == []
    assert [name for name in ("long.txt", "named.txt", "CLAUDE.md") if f"begin of {name}" not in everything] == []
    assert prompt in first["gen_ai.input.messages"]
    asked, thought, read = messages(second, "input.messages")[-3:]
    assert [asked["role"], thought["role"], read["role"]] == ["user", "assistant", "tool"]
    call, result = thought["parts"][-1], read["parts"][0]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "tool_call",
        "Read",
        done.one(protocol.ToolUse).data.input,
    )
    assert (result["type"], result["id"]) == ("tool_call_response", call["id"])
    assert result["response"].endswith("…") and len(result["response"]) == 1000
    assert [part["type"] for part in messages(first, "output.messages")[0]["parts"]] == ["reasoning", "tool_call"]
    assert any("Claude" in part["content"] for part in messages(first, "system_instructions"))
    assert {"type": "function", "name": "Read"} in messages(first, "tool.definitions")


SECRET = "sk-ant-abcdefghijklmnop"
LONG = "The key is " + SECRET + ", keep it. " + "word " * 60


@pytest.mark.parametrize(
    ("content", "shown"),
    [("none", None), ("preview", "cut"), ("full", "whole")],
)
def test_content_goes_into_spans_as_far_as_configured(make_lab: MakeLab, content: str, shown: str | None) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - text: {LONG!r}
                tools:
                  - name: mcp__lab__add
                    input: {{a: 1, b: 2, content: the whole file, note: {SECRET}}}
                  - {{name: Bash, input: {{command: echo output}}}}
              - text: {LONG!r}
    """)
    options = ("--content", content, "--tool-content", content)
    if content == "preview":
        options = ("--tool-content", content)  # the default for the rest
    server = ("--mcp-servers", "lab=tests.runner.mcp_servers:lab", "--allowed-tools", "mcp__lab__add")
    done = lab.run("--prompt", LONG, *options, *server)
    assert done.exit_code == 0
    turn, tool = done.span("agent.execute").attributes, done.span("execute_tool mcp__lab__add").attributes
    chats = [span.attributes for span in done.spans if span.name == CHAT]
    everything = repr([span.attributes for span in done.spans])
    assert SECRET not in everything
    assert ("the whole file" in everything) == (content == "full")
    output = done.span("execute_tool Bash").attributes.get("gen_ai.tool.call.result")
    assert output == ("output" if content == "full" else None)
    if shown is None:
        assert "The key is" not in everything
        assert "gen_ai.tool.call.arguments" not in everything
        return
    for text in (turn["gen_ai.input.messages"], turn["gen_ai.output.messages"], chats[0]["gen_ai.output.messages"]):
        assert "The key is [redacted], keep it." in text
        assert ("…" in text) == (shown == "cut")
        assert (text.count("word") == 60) == (shown == "whole")
        (message,) = json.loads(text)
        assert len(message["parts"][0]["content"]) == (
            len(LONG) - len(SECRET) + len("[redacted]") if shown == "whole" else 100
        )
    assert ('"content":"[left out]"' in tool["gen_ai.tool.call.arguments"]) == (shown == "cut")
    assert "[redacted]" in tool["gen_ai.tool.call.arguments"]
    assert '"text":"3"' in tool["gen_ai.tool.call.result"]


def test_a_span_has_at_most_a_thousand_characters_of_files_and_output(make_lab: MakeLab) -> None:
    """Stars stand for file contents; the secret before them is redacted, and does not count."""
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools: [{{name: Write, input: {{file_path: notes, content: "{SECRET} {"*" * 5000}"}}}}]
              - tools: [{{name: Read, input: {{file_path: notes}}}}]
              - tools:
                  - name: Edit
                    input: {{file_path: notes, old_string: "{"*" * 5000}", new_string: "{"*" * 4000}"}}
              - tools: [{{name: Bash, input: {{command: cat notes}}}}]
              - tools: [{{name: Bash, input: {{command: "echo {"*" * 3000} > /dev/null"}}}}]
              - text: Done.
    """)
    done = lab.run("--prompt", "go", "--allowed-tools", "Write,Read,Edit,Bash", "--tool-content", "full")
    assert all(not result.data.is_error for result in done.of(protocol.ToolResult))
    shown = [
        (span.name.partition(" ")[2], repr(span.attributes).count("*"))
        for span in sorted(done.spans, key=lambda span: span.start)
        if span.name.startswith("execute_tool")
    ]
    assert [name for name, _ in shown] == ["Write", "Read", "Edit", "Bash", "Bash"]
    assert all(800 < stars <= 1000 for _, stars in shown), shown
    assert SECRET not in repr([span.attributes for span in done.spans])


def test_by_default_a_tools_arguments_and_results_are_told_by_size_alone(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo private}}]
              - text: Done.
    """)
    done = lab.run("--prompt", "go")
    assert "private" not in repr([span.attributes for span in done.spans])
    assert done.span("execute_tool Bash").attributes["tool.output_size"] == len("private")


@pytest.mark.parametrize(("name", "shown"), [("shout", "SAY HI"), ("break_down", "[the sanitizer failed: ValueError]")])
def test_the_sanitizer_can_be_replaced_and_breaks_nothing(
    make_lab: Callable[[str], Lab], name: str, shown: str
) -> None:
    lab = make_lab("{model: scripted, conversations: {main: {replies: [{text: Hi.}]}}}")
    done = lab.run("--prompt", "say hi", "--sanitizer", f"tests.runner.mcp_servers:{name}")
    assert done.exit_code == 0
    assert done.span("agent.execute").attributes["gen_ai.input.messages"] == (
        '[{"role":"user","parts":[{"type":"text","content":"' + shown + '"}]}]'
    )
