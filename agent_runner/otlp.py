"""Spans of ours as OpenTelemetry's, and as bytes of OTLP.

Importing this module imports OpenTelemetry; the runner does so only with telemetry on, and after the
agent has started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags
from opentelemetry.proto.trace.v1.trace_pb2 import Status as ProtoStatus
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from . import __version__
from .spans import Span, Value

_SCOPE = InstrumentationScope("sandspan.agent_runner", __version__)
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_PROTO_KINDS = {"internal": ProtoSpan.SPAN_KIND_INTERNAL, "client": ProtoSpan.SPAN_KIND_CLIENT}
_IS_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = _IS_LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_UNSET = ProtoStatus()
_SHORT = 128
"""A longer text hardly comes twice, and would only fill the cache."""


def resource(service_name: str) -> Resource:
    """Return the resource of this process: ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
    # The environment's attributes are merged over the given ones by hand: `create` does it the other way.
    given = Resource({"service.name": service_name, "service.version": __version__})
    detected = Resource.create()
    if str(detected.attributes.get("service.name", "")).startswith("unknown_service"):
        return detected.merge(given)
    return given.merge(detected)


def readable(span: Span, of: Resource) -> ReadableSpan:
    """Return an ended span in the form that OpenTelemetry's exporters take."""
    state = TraceState.from_header([span.tracestate]) if span.tracestate else None
    parent = None
    if span.parent_span_id:
        parent = SpanContext(
            int(span.trace_id, 16), int(span.parent_span_id, 16), span.parent_is_remote, _SAMPLED, state
        )
    failed = span.error_type is not None
    return ReadableSpan(
        name=span.name,
        context=SpanContext(int(span.trace_id, 16), int(span.span_id, 16), False, _SAMPLED, state),
        parent=parent,
        resource=of,
        attributes=span.attributes,
        events=[Event(event.name, event.attributes, event.time) for event in span.events],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error_message or span.error_type) if failed else Status(),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=_SCOPE,
    )


def encode(spans: Sequence[Span], of: Resource) -> bytes:
    """Return a serialized OTLP ``ExportTraceServiceRequest``.

    The same bytes as OpenTelemetry's own encoder gives for `readable` spans, in a third of the time: it
    is called on the agent's event loop, and most attributes of a run repeat on every span.
    """
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.extend(key_values(of.attributes))
    of_resource.schema_url = of.schema_url
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name, of_scope.scope.version = _SCOPE.name, __version__
    for span in spans:
        _add(of_scope.spans, span)
    return request.SerializeToString()


def _add(to: Any, span: Span) -> None:
    message = to.add(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        trace_state=span.tracestate,
        parent_span_id=bytes.fromhex(span.parent_span_id or ""),
        name=span.name,
        kind=_PROTO_KINDS[span.kind],
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
        attributes=key_values(span.attributes),
        status=_status(span),
        flags=_IS_REMOTE if span.parent_is_remote else _IS_LOCAL,
    )
    for event in span.events:
        message.events.add(name=event.name, time_unix_nano=event.time, attributes=key_values(event.attributes))


def _status(span: Span) -> ProtoStatus:
    if span.error_type is None:
        return _UNSET
    return ProtoStatus(code=ProtoStatus.STATUS_CODE_ERROR, message=span.error_message or span.error_type)


def key_values(of: Mapping[str, Any]) -> list[KeyValue]:
    """Return attributes as OTLP has them."""
    return [
        _key_value(key, value) if isinstance(value, str) and len(value) > _SHORT else _repeated(key, value)
        for key, value in of.items()
    ]


def _key_value(key: str, value: Value) -> KeyValue:
    return KeyValue(key=key, value=_any_value(value))


_repeated = lru_cache(512, typed=True)(_key_value)  # typed: 1, 1.0 and True are three values here


def _any_value(value: Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(array_value=ArrayValue(values=[_any_value(item) for item in value]))
