"""The hand-written encoder gives the bytes of OpenTelemetry's own for all values."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner._resource import resource
from agent_runner.contract import __version__, otlp, readable
from agent_runner.contract.spans import Span, Spans
from agent_runner.contract.trace_context import TraceContext

CACHE = otlp._cached_attribute  # pyright: ignore[reportPrivateUsage]
REMOTE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1, "vendor=a,other=b")


def spans_of_every_kind() -> list[Span]:
    spans = Spans({"user.id": "ü" * 300, "session.id": "s"})
    root = spans.open_root("agent.execute", REMOTE, {"flag": True, "one": 1, "real": 1.0, "no": False, "zero": 0})
    chat = spans.open_child("chat m", root, {"gen_ai.response.finish_reasons": ("tool_use", "")})
    chat.kind = "client"
    chat.add_event("api_retry", 7, {"attempt": 1, "error.type": "overloaded"})
    tool = spans.open_child("execute_tool Bash", root, {"big": 2**62, "negative": -1, "empty": ""})
    tool.fail("tool_error", "Bash: failed")
    unsaid = spans.open_child("execute_tool Read", root, {})
    unsaid.fail("cancelled")
    for span in (chat, tool, unsaid, root):
        spans.close(span)
    alone = spans.open_root("agent.execute", spans.new_trace(), {})
    spans.close(alone)
    return spans.take_ended()


def test_spans_are_encoded_as_opentelemetry_encodes_them() -> None:
    spans, of = spans_of_every_kind(), readable.resource("agent_runner")
    reference = encode_spans([readable.readable(span, of) for span in spans])
    for _ in range(2):  # the second time from the cache
        assert ExportTraceServiceRequest.FromString(otlp.encode(spans, of)) == reference


@pytest.mark.parametrize("text", ["x" * size for size in (0, 117, *range(120, 131), 1024, 20_000)] + ["é" * 63, "\x00"])
def test_a_text_of_any_length_is_encoded_as_opentelemetry_encodes_it(text: str) -> None:
    spans, of = Spans({}), readable.resource("agent_runner")
    spans.close(spans.open_root(f"agent.{text}", spans.new_trace(), {"key": text, f"key.{text}": 1, text: "value"}))
    ended = spans.take_ended()
    reference = encode_spans([readable.readable(span, of) for span in ended])
    assert ExportTraceServiceRequest.FromString(otlp.encode(ended, of)) == reference


@pytest.mark.parametrize("name", ["gen_ai.input.messages", "gen_ai.request.model", "x" * 100_000])
def test_what_is_long_is_encoded_and_not_kept(name: str) -> None:
    spans, of = Spans({}), readable.resource("agent_runner")
    spans.close(spans.open_root("agent.execute", spans.new_trace(), {name: "x" * 100_000, "a": "b"}))
    ended = spans.take_ended()
    CACHE.cache_clear()
    otlp.encode([], of)
    before = CACHE.cache_info().currsize
    reference = encode_spans([readable.readable(span, of) for span in ended])
    assert ExportTraceServiceRequest.FromString(otlp.encode(ended, of)) == reference
    assert CACHE.cache_info().currsize == before + 1, "the short one alone is kept"


def test_however_many_attributes_there_are_few_are_kept() -> None:
    spans, of = Spans({}), readable.resource("agent_runner")
    for number in range(10_000):
        spans.close(spans.open_root("agent.execute", spans.new_trace(), {f"key.{number}": number}))
    otlp.encode(spans.take_ended(), of)
    assert 0 < CACHE.cache_info().currsize <= 2048


def of(**environ: str) -> dict[str, str]:
    return {name: value for name, value in resource("agent_runner", environ).attributes.items() if "sdk" not in name}


def test_a_resource_says_what_the_environment_says_of_it() -> None:
    own = of()
    instance = own.pop("service.instance.id")
    assert len(instance) == 36
    assert own == {"service.name": "agent_runner", "service.version": __version__}
    given = "service.name=first, team = a%20b ,service.version=7,service.instance.id=one,empty="
    expected = {"service.name": "first", "service.version": "7", "service.instance.id": "one"}
    assert of(OTEL_RESOURCE_ATTRIBUTES=given) == {**expected, "team": "a b", "empty": ""}
    assert of(OTEL_RESOURCE_ATTRIBUTES=given, OTEL_SERVICE_NAME="mine")["service.name"] == "mine"


@pytest.mark.parametrize("text", ["team", "a=b,team", "=x,a=b"])
def test_a_resource_leaves_out_what_is_no_pair_and_says_so(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert set(of(OTEL_RESOURCE_ATTRIBUTES=text)) - {"a"} == set(of())
    assert "is ignored" in caplog.text


def test_a_resource_of_any_bytes_can_be_encoded() -> None:
    said = resource("agent_runner", {"OTEL_RESOURCE_ATTRIBUTES": "a=\udcff,b=%ff"})
    assert ExportTraceServiceRequest.FromString(otlp.encode([], said))


def test_a_resource_is_as_opentelemetry_detects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=1,team=a%20b,service.name=x", "OTEL_SERVICE_NAME": "mine"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    theirs = {name: value for name, value in readable.resource("agent_runner").attributes.items() if "sdk" not in name}
    assert of(**given) == theirs
