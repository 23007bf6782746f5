"""A sanitizer of the host changes the content of the spans that a sandbox relays."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent_runner.contract import genai
from agent_runner.contract.messages import ContentSanitizer
from agent_runner.contract.sanitize import ToolSanitizer, full
from agent_runner.contract.spans import Span
from host_client.telemetry import otlp
from host_client.telemetry.export.content import WITHHELD, ContentFilter


def span(attributes: dict[str, Any], events: tuple[Message.Event, ...] = ()) -> Message:
    return Message(
        name="chat",
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        attributes=otlp.key_values(attributes),
        events=events,
        status=Status(code=Status.STATUS_CODE_ERROR, message="why"),
        start_time_unix_nano=1,
        end_time_unix_nano=2,
    )


def attributes_of(span: Message | Message.Event) -> dict[str, Any]:
    return otlp.values_of(span.attributes)


def content_of_the_runner() -> dict[str, Any]:
    """Return all content attributes that the runner can put on a span."""
    of = Span("any", "0" * 32, "0" * 16, None, 0)
    genai.set_output(of, "my answer", "end_turn", full)
    content = ContentSanitizer(full, ToolSanitizer(full, True), whole_requests=True)
    genai.set_whole_request(of, {"messages": [], "system": "my rules", "tools": [{"name": "Bash"}]}, content)
    genai.set_input(of, "my prompt", full)
    genai.set_arguments(of, {"command": "my command"}, ToolSanitizer(full, True))
    genai.set_tool_output(of, "mcp__a__b", "my result", ToolSanitizer(full, True))
    return dict(of.attributes)


def test_every_content_attribute_of_the_runner_goes_through_it() -> None:
    attributes = content_of_the_runner()
    assert set(attributes) == genai.CONTENT
    given = span(attributes)
    ContentFilter(lambda text: text.replace("my", "your")).clean(given)
    clean = attributes_of(given)
    assert json.loads(str(clean["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "your prompt"}]}
    ]
    assert "your answer" in str(clean["gen_ai.output.messages"])
    assert clean["gen_ai.system_instructions"] == '[{"type":"text","content":"your rules"}]'
    assert clean["gen_ai.tool.call.arguments"] == '{"command":"your command"}'
    assert clean["gen_ai.tool.call.result"] == '"your result"'


def test_all_else_of_a_span_stays_as_it_is() -> None:
    words = otlp.key_values({"gen_ai.input.messages": "my words", "retry.attempt": 1})
    event = Message.Event(name="api_retry", attributes=words, time_unix_nano=5)
    clean = span({"gen_ai.input.messages": "my prompt", "gen_ai.request.model": "my model"}, (event,))
    given = Message.FromString(clean.SerializeToString())
    ContentFilter(str.upper).clean(clean)
    assert attributes_of(clean) == {"gen_ai.input.messages": "MY PROMPT", "gen_ai.request.model": "my model"}
    assert attributes_of(clean.events[0]) == {"gen_ai.input.messages": "MY WORDS", "retry.attempt": 1}
    for each in (clean, given, clean.events[0], given.events[0]):
        del each.attributes[:]
    assert clean == given


def test_a_span_without_content_stays_as_it_is() -> None:
    given = span({"gen_ai.request.model": "m"})
    ContentFilter(str.upper).clean(given)
    assert given == span({"gen_ai.request.model": "m"})


@pytest.mark.parametrize(
    "forged", [("a", "b"), 7, '[{"role":"user","parts":[{"type":"text","content":3}]}]', "{", "[]"]
)
def test_what_no_runner_writes_is_sanitized_or_withheld(forged: object) -> None:
    clean = span({"gen_ai.input.messages": forged})
    ContentFilter(lambda _: "clean").clean(clean)
    assert attributes_of(clean)["gen_ai.input.messages"] in ("clean", WITHHELD)


def test_what_a_sanitizer_fails_on_is_withheld_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    guard = ContentFilter(fails)
    with caplog.at_level(logging.WARNING):
        spans = [span(content_of_the_runner()) for _ in range(2)]
        for each in spans:
            guard.clean(each)
    assert guard.withheld == 10
    assert [record.message for record in caplog.records] == [
        "sanitize_prompt raised ValueError: the texts on which it fails are withheld"
    ]
    assert "my" not in str([attributes_of(each) for each in spans])


def test_a_sanitizer_that_returns_no_text_is_one_that_fails() -> None:
    guard = ContentFilter(lambda _: None)  # type: ignore[arg-type, return-value]
    assert guard.text("my prompt") == WITHHELD
    assert guard.withheld == 1
