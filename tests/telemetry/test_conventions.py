"""Spans and metrics follow the GenAI conventions; the older names on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_runner.contract.messages import ContentSanitizer, text_message, tool_definitions
from host_client.telemetry.conventions import CONVENTIONS, Conventions, rename
from host_client.telemetry.metrics.instruments import BEFORE, METRICS, is_exported
from host_client.telemetry.otlp import key_values, values_of
from tests.support.conventions import CLIENT, INTERNAL, violations, violations_of_metrics
from tests.support.runs import ERROR, OK, SpanView

CONTENT = ContentSanitizer(str, whole_requests=True)
CALL = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"a": 1}}
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "anthropic",
    "gen_ai.request.model": "m",
    "gen_ai.request.stream": True,
    "gen_ai.response.finish_reasons": ["tool_use"],
    "gen_ai.usage.input_tokens": 5,
    "gen_ai.input.messages": CONTENT.input([{"role": "user", "content": "Go"}]),
    "gen_ai.output.messages": CONTENT.output([{"type": "text", "text": "Hi."}, CALL], "tool_use"),
    "gen_ai.system_instructions": CONTENT.instructions("Be brief."),
    "gen_ai.tool.definitions": tool_definitions([{"name": "Bash"}]),
    "gen_ai.conversation.id": "c",
    "chat.request_class": "main",
}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "Bash", "gen_ai.tool.type": "function"}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Explore"}


def view(name: str, attributes: dict[str, Any], kind: int = INTERNAL) -> SpanView:
    status = ERROR if "error.type" in attributes else OK
    return SpanView(name, "a" * 32, "b" * 16, "", 1, 2, kind, status, "", "", attributes, [])


GOOD = [
    view("chat m", CHAT, CLIENT),
    view("chat m", {**CHAT, "error.type": "network"}, CLIENT),
    view("execute_tool Bash", TOOL),
    view("invoke_agent Explore", AGENT),
    view("agent.execute", AGENT),
    view("agent.approval", {"gen_ai.tool.name": "Bash", "approval.id": "a"}),
    view("sandbox.create", {"sandbox.id": "s"}),
]


def test_spans_that_follow_the_conventions_have_no_violations() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("name", "changes", "kind", "fault"),
    [
        ("chat m", {"gen_ai.provider.name": None}, CLIENT, "gen_ai.provider.name is missing"),
        ("chat other", {}, CLIENT, "it is not named"),
        ("chat m", {}, INTERNAL, "its kind is not client"),
        ("chat m", {"gen_ai.usage.input_tokens": "5"}, CLIENT, "gen_ai.usage.input_tokens has a wrong value"),
        ("chat m", {"gen_ai.request.stream": False}, CLIENT, "gen_ai.request.stream has a wrong value"),
        ("chat m", {"gen_ai.usage.cache_creation.input_tokens": 5}, CLIENT, "is not of this operation"),
        ("chat m", {"gen_ai.invented": 5}, CLIENT, "gen_ai.invented is not of this operation"),
        ("chat m", {"gen_ai.output.messages": '[{"role":"user"}]'}, CLIENT, "gen_ai.output.messages has a wrong"),
        ("chat m", {"gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text"}]}]'}, CLIENT, "has a wrong"),
        ("chat m", {"gen_ai.tool.definitions": '[{"name":"Bash"}]'}, CLIENT, "gen_ai.tool.definitions has a wrong"),
        ("chat m", {"gen_ai.system_instructions": '[{"type":"image"}]'}, CLIENT, "has a wrong"),
        ("chat m", {"server.address": "h"}, CLIENT, "server.address and server.port go together"),
        ("chat m", {"gen_ai.operation.name": None}, CLIENT, "no operation, but"),
    ],
)
def test_the_checker_finds_what_does_not_follow_them(name: str, changes: dict[str, Any], kind: int, fault: str) -> None:
    attributes = {key: value for key, value in (CHAT | changes).items() if value is not None}
    (found,) = violations([view(name, attributes, kind)])
    assert fault in found


def test_a_failed_span_says_why_and_a_good_one_does_not() -> None:
    for span in (replace(GOOD[0], status=ERROR), replace(GOOD[1], status=OK)):
        assert violations([span]) == ["chat m: a failed span has error.type, and no other"]


def test_an_internal_agent_has_no_provider() -> None:
    (found,) = violations([view("agent.execute", {**AGENT, "gen_ai.provider.name": "anthropic"})])
    assert found == "agent.execute: gen_ai.provider.name is not of this operation"


def test_metrics_have_the_names_units_buckets_and_attributes_of_the_conventions() -> None:
    assert violations_of_metrics(METRICS) == []
    assert len([metric for metric in METRICS if metric.name.startswith("gen_ai.")]) == 13


def test_the_checker_finds_metrics_that_do_not_follow_them() -> None:
    assert violations_of_metrics(BEFORE) == [f"{metric.name} is not a metric of the conventions" for metric in BEFORE]
    duration = next(metric for metric in METRICS if metric.name == "gen_ai.invoke_agent.duration")
    changes: list[dict[str, Any]] = [{"unit": "ms"}, {"labels": ("user",)}, {"buckets": (1.0,)}, {"kind": "counter"}]
    for change in changes:
        assert len(violations_of_metrics([duration._replace(**change)])) == 1


@pytest.mark.parametrize(
    ("conventions", "new", "old"), [("v0.1.0", True, False), ("v1.41.0", False, True), ("both", True, True)]
)
def test_a_setting_chooses_the_names(conventions: Conventions, new: bool, old: bool) -> None:
    span = Span(attributes=key_values({"gen_ai.usage.cache_write.input_tokens": 7, "gen_ai.usage.output_tokens": 1}))
    for _ in range(2):  # a second time changes nothing
        rename(span, conventions)
        expected = {"gen_ai.usage.cache_write.input_tokens": 7} if new else {}
        expected |= {"gen_ai.usage.cache_creation.input_tokens": 7} if old else {}
        assert values_of(span.attributes) == {**expected, "gen_ai.usage.output_tokens": 1}
        assert len(span.attributes) == 1 + new + old
    exported = [metric.name for metric in (*METRICS, *BEFORE) if is_exported(metric, conventions)]
    assert ("gen_ai.client.inference.duration" in exported, "gen_ai.client.token.usage" in exported) == (new, old)
    assert "claude.agent.duration.ms" in exported
    assert set(CONVENTIONS) == {"v0.1.0", "v1.41.0", "both"}


def test_agents_have_a_provider_in_the_older_conventions() -> None:
    for conventions in CONVENTIONS:
        span = Span(attributes=key_values(AGENT))
        rename(span, conventions)
        rename(span, conventions)
        provider = {} if conventions == "v0.1.0" else {"gen_ai.provider.name": "anthropic"}
        assert values_of(span.attributes) == {**AGENT, **provider}
        assert len(span.attributes) == len(AGENT) + len(provider)


def test_a_text_message_can_be_without_a_stop_reason() -> None:
    assert text_message("user", "Go") == '[{"role":"user","parts":[{"type":"text","content":"Go"}]}]'
    assert text_message("assistant", "Hi", "end_turn").endswith('"finish_reason":"end_turn"}]')
