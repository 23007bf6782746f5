"""Spans as bytes: what OpenTelemetry's own encoder gives, whatever the values."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner import otlp
from agent_runner.spans import Span, Spans
from agent_runner.trace_context import TraceContext

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
    spans, resource = spans_of_every_kind(), otlp.resource("agent_runner")
    reference = encode_spans([otlp.readable(span, resource) for span in spans])
    for _ in range(2):  # the second time from the cache
        assert ExportTraceServiceRequest.FromString(otlp.encode(spans, resource)) == reference
