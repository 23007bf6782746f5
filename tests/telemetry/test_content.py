"""A sanitizer of the host's own, over the spans that a sandbox relays."""

from __future__ import annotations

import json
import logging

import pytest
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode

from agent_runner.contract import genai
from agent_runner.contract.sanitize import full
from agent_runner.contract.spans import Span
from host_client.telemetry.export.content import WITHHELD, ContentFilter


def span(attributes: dict[str, object], events: tuple[Event, ...] = ()) -> ReadableSpan:
    return ReadableSpan(
        "chat",
        context=SpanContext(7, 9, is_remote=False),
        attributes=attributes,  # pyright: ignore[reportArgumentType]
        events=events,
        status=Status(StatusCode.ERROR, "why"),
        start_time=1,
        end_time=2,
    )


def content_of_the_runner() -> dict[str, object]:
    """All that the runner puts on a span of what was said."""
    of = Span("any", "0" * 32, "0" * 16, None, 0)
    genai.set_input(of, "my prompt", full)
    genai.set_output(of, "my answer", full)
    genai.set_arguments(of, {"command": "my command"}, full)
    genai.set_tool_output(of, "mcp__a__b", "my result", full)
    return dict(of.attributes)


def test_every_content_attribute_of_the_runner_goes_through_it() -> None:
    attributes = content_of_the_runner()
    assert set(attributes) == genai.CONTENT
    clean = ContentFilter(lambda text: text.replace("my", "your")).span(span(attributes))
    assert clean.attributes is not None
    assert json.loads(str(clean.attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "your prompt"}]}
    ]
    assert "your answer" in str(clean.attributes["gen_ai.output.messages"])
    assert clean.attributes["gen_ai.tool.call.arguments"] == '{"command":"your command"}'
    assert clean.attributes["gen_ai.tool.call.result"] == '"your result"'


def test_all_else_of_a_span_stays_as_it_is() -> None:
    events = (Event("api_retry", {"gen_ai.input.messages": "my words", "retry.attempt": 1}, 5),)
    given = span({"gen_ai.input.messages": "my prompt", "gen_ai.request.model": "my model"}, events)
    clean = ContentFilter(str.upper).span(given)
    assert clean.attributes == {"gen_ai.input.messages": "MY PROMPT", "gen_ai.request.model": "my model"}
    (event,) = clean.events
    assert (event.attributes, event.timestamp) == ({"gen_ai.input.messages": "MY WORDS", "retry.attempt": 1}, 5)
    for name in ("name", "context", "parent", "resource", "kind", "status", "start_time", "end_time"):
        assert getattr(clean, name) == getattr(given, name)


def test_a_span_without_content_is_the_same_one() -> None:
    given = span({"gen_ai.request.model": "m"})
    assert ContentFilter(str.upper).span(given) is given


@pytest.mark.parametrize(
    "forged", [("a", "b"), 7, '[{"role":"user","parts":[{"type":"text","content":3}]}]', "{", "[]"]
)
def test_what_no_runner_writes_is_sanitized_or_withheld(forged: object) -> None:
    clean = ContentFilter(lambda _: "clean").span(span({"gen_ai.input.messages": forged}))
    assert clean.attributes is not None
    assert clean.attributes["gen_ai.input.messages"] in ("clean", WITHHELD)


def test_what_a_sanitizer_fails_on_is_withheld_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    guard = ContentFilter(fails)
    with caplog.at_level(logging.WARNING):
        spans = [guard.span(span(content_of_the_runner())) for _ in range(2)]
    assert guard.withheld == 8
    assert [record.message for record in caplog.records] == [
        "sanitize_prompt raised ValueError: what it fails on is withheld"
    ]
    assert "my" not in str([each.attributes for each in spans])


def test_a_sanitizer_that_returns_no_text_is_one_that_fails() -> None:
    guard = ContentFilter(lambda _: None)  # type: ignore[arg-type, return-value]
    assert guard.text("my prompt") == WITHHELD
    assert guard.withheld == 1
