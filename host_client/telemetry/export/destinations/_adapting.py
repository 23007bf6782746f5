"""Adapt serialized requests to a receiver that reads attributes of its own."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ROOT = "agent.session"
"""Name of a session's span, by which receivers list its trace."""


def each_span(
    body: bytes, complete: Callable[[Span], None], describe: Callable[[Resource], None] | None = None
) -> bytes:
    """Return a serialized request after calls of ``complete`` with each span and of ``describe`` with each resource."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        return body  # the receiver refuses it with a reason
    for resource_spans in request.resource_spans:
        if describe is not None:
            describe(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                complete(span)
    return request.SerializeToString()


def rename_tool(span: Span) -> None:
    """Rename the attribute because of which a receiver would show an approval as a tool call."""
    for pair in span.attributes:
        if pair.key == "gen_ai.tool.name":
            pair.key = "approval.tool_name"
