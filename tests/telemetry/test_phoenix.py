"""Spans with the attributes that Phoenix reads; `make test-backends` checks them against a real one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner.contract import genai, otlp, readable
from agent_runner.contract.messages import ContentSanitizer, text_message
from agent_runner.contract.sanitize import ToolSanitizer
from agent_runner.contract.spans import Span
from host_client.telemetry.export.destinations.phoenix import mapping
from host_client.telemetry.otlp import values_of
from tests.support.runs import SpanView, spans_in


def request(name: str, attributes: dict[str, Any], error: str = "") -> bytes:
    span = Span(name, "a" * 32, "b" * 16, "c" * 16, 1, end=2, attributes=dict(attributes))
    if error:
        span.fail("tool_error", error)
    return otlp.encode([span], readable.resource("tests"))


def added(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that are added to those of a span, all of which stay."""
    (view,) = spans_in(mapping("p")(request(name, attributes)))
    assert {key: view.attributes[key] for key in attributes} == attributes
    return {key: value for key, value in view.attributes.items() if key not in attributes}


def test_the_spans_go_to_the_project() -> None:
    mapped = ExportTraceServiceRequest.FromString(mapping("second")(mapping("first")(request("x", {}))))
    (resource,) = (each.resource for each in mapped.resource_spans)
    assert values_of(resource.attributes)["openinference.project.name"] == "second"
    assert [pair.key for pair in resource.attributes].count("openinference.project.name") == 1
    assert values_of(resource.attributes)["service.name"] == "tests"


def test_a_model_request_has_its_model_tokens_and_answer() -> None:
    usage = {
        "gen_ai.usage.input_tokens": 1210,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 1000,
        "gen_ai.usage.cache_creation.input_tokens": 200,
    }
    about = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", **usage}
    models = {"gen_ai.request.model": "sonnet", "gen_ai.response.model": "claude-sonnet-4-5"}
    answer = {"gen_ai.output.messages": text_message("assistant", "Done.")}
    ending = {"gen_ai.response.finish_reasons": ["end_turn"]}
    expected = {
        "openinference.span.kind": "LLM",
        "output.value": "Done.",
        "output.mime_type": "text/plain",
        "llm.provider": "anthropic",
        "llm.system": "anthropic",
        "llm.model_name": "claude-sonnet-4-5",
        "llm.token_count.prompt": 1210,
        "llm.token_count.completion": 50,
        "llm.token_count.total": 1260,
        "llm.token_count.prompt_details.cache_read": 1000,
        "llm.token_count.prompt_details.cache_write": 200,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Done.",
        "llm.finish_reason": "end_turn",
    }
    assert added("chat sonnet", about | models | answer | ending) == expected
    del about["gen_ai.usage.cache_creation.input_tokens"]
    newer = {**about, "gen_ai.usage.cache_write.input_tokens": 200, **models, **answer, **ending}
    # Phoenix itself reads the older name.
    assert added("chat sonnet", newer) == {**expected, "gen_ai.usage.cache_creation.input_tokens": 200}


def test_messages_with_tool_calls_and_results_are_shown_part_by_part() -> None:
    blocks = [{"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"a": 1}}]
    results = [{"type": "tool_result", "tool_use_id": "t1", "content": "two files"}]
    content = ContentSanitizer(str, ToolSanitizer(str, True), whole_requests=True)
    history = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": blocks}]
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": content.input([*history, {"role": "user", "content": results}]),
        "gen_ai.output.messages": content.output([{"type": "text", "text": "Two."}], "end_turn"),
    }
    shown = added("chat m", about)
    assert shown["output.value"] == "Two."
    assert shown["input.mime_type"] == "application/json"
    call = "llm.input_messages.1.message.tool_calls.0.tool_call"
    assert {key: value for key, value in shown.items() if key.startswith("llm.")} == {
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Go",
        "llm.input_messages.1.message.role": "assistant",
        "llm.input_messages.1.message.content": "I look.",
        f"{call}.id": "t1",
        f"{call}.function.name": "Bash",
        f"{call}.function.arguments": '{"a":1}',
        "llm.input_messages.2.message.role": "tool",
        "llm.input_messages.2.message.content": "two files",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Two.",
    }


@pytest.mark.parametrize(
    ("attribute", "value", "kind"),
    [
        ("arguments", '{"command":"ls"}', "application/json"),
        ("arguments", '{"command":"l…', "text/plain"),
        ("result", '"a text"', "text/plain"),
        ("result", "[1]", "application/json"),
    ],
)
def test_a_call_has_its_tool_input_and_output(attribute: str, value: str, kind: str) -> None:
    attributes = {**genai.execute_tool("t1", "Bash", 5), f"gen_ai.tool.call.{attribute}": value}
    name = "input" if attribute == "arguments" else "output"
    assert added("execute_tool Bash", attributes) == {
        "openinference.span.kind": "TOOL",
        "tool.name": "Bash",
        "tool.id": "t1",
        **({"tool.parameters": value} if attribute == "arguments" else {}),
        f"{name}.value": value,
        f"{name}.mime_type": kind,
    }


def test_a_turn_is_an_agent_with_prompt_and_answer() -> None:
    messages = {"gen_ai.input.messages": text_message("user", "Go"), "gen_ai.output.messages": json.dumps([1, 2])}
    assert added("agent.execute", {**genai.invoke_agent("m", 1), **messages}) == {
        "gen_ai.provider.name": "anthropic",
        "openinference.span.kind": "AGENT",
        "agent.name": "claude-agent",
        "input.value": "Go",
        "input.mime_type": "text/plain",
        "output.value": "[1, 2]",
        "output.mime_type": "application/json",
    }


def view_of(name: str, attributes: dict[str, Any], error: str = "") -> SpanView:
    (view,) = spans_in(mapping("p")(request(name, attributes, error)))
    return view


def test_a_session_in_the_trace_of_a_caller_is_a_root_and_its_other_spans_stay_below_it() -> None:
    assert view_of("agent.session", {}).parent_span_id == ""
    assert view_of("agent.execute", {}).parent_span_id == "c" * 16


def test_a_session_has_the_name_that_the_user_gives_to_its_trace() -> None:
    assert view_of("agent.session", {"trace.name": "Mending"}).name == "Mending"
    assert view_of("agent.session", {}).name == "agent.session"
    assert view_of("agent.execute", {"trace.name": "Mending"}).name == "agent.execute"


def test_an_approval_is_no_tool_call() -> None:
    attributes = view_of("agent.approval", dict(genai.approval("a1", "t1", "Bash"))).attributes
    assert attributes["openinference.span.kind"] == "CHAIN"
    assert attributes["approval.tool_name"] == "Bash"
    assert "gen_ai.tool.name" not in attributes
    assert "tool.name" not in attributes


def test_a_failed_span_has_an_exception_of_its_error_type_and_others_have_none() -> None:
    failed = view_of("execute_tool Bash", {}, "Bash: failed")
    assert failed.events == [("exception", {"exception.type": "tool_error", "exception.message": "Bash: failed"})]
    assert view_of("execute_tool Bash", {}).events == []


@pytest.mark.parametrize("forged", [7, 1.5, True, ["a", "b"], "", "["])
def test_values_that_no_runner_sends_break_nothing(forged: object) -> None:
    names = ["operation.name", "usage.input_tokens", "usage.output_tokens", "response.finish_reasons", "request.model"]
    attributes = {f"gen_ai.{name}": forged for name in [*names, "input.messages", "output.messages"]}
    assert added("chat", attributes)["openinference.span.kind"] == "CHAIN"
    assert added("chat", {**attributes, "gen_ai.operation.name": "chat"})["openinference.span.kind"] == "LLM"


def test_what_was_said_before_stays_and_bytes_that_are_no_spans_are_sent_as_they_are() -> None:
    assert "openinference.span.kind" not in added("x", {"openinference.span.kind": "GUARDRAIL"})
    assert mapping("p")(b"nonsense") == b"nonsense"
