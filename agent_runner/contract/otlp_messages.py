"""Convert OTLP messages to Python values and to the classes of OpenTelemetry's SDK, which this module imports. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import Status as SdkStatus

from .spans import Value

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCALARS = ("string_value", "bool_value", "int_value", "double_value")


def key_values(attributes: Mapping[str, Value]) -> list[KeyValue]:
    """Return attributes as OTLP messages."""
    return [KeyValue(key=key, value=_any_value(value)) for key, value in attributes.items()]


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


def values_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Return the attributes as a dict of Python values; a map, bytes or no value becomes ""."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, kind) if kind in _SCALARS else ""


def readable(body: bytes) -> list[ReadableSpan]:
    """Return the spans of a serialized request as `ReadableSpan`s; raise DecodeError for bytes that are no request."""
    request = ExportTraceServiceRequest.FromString(body)
    spans: list[ReadableSpan] = []
    for resource_spans in request.resource_spans:
        resource = Resource(values_of(resource_spans.resource.attributes), resource_spans.schema_url)
        for scope_spans in resource_spans.scope_spans:
            about, url = scope_spans.scope, scope_spans.schema_url
            scope = InstrumentationScope(about.name, about.version, url, values_of(about.attributes))
            spans += [_readable(span, resource, scope) for span in scope_spans.spans]
    return spans


def _readable(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    state = TraceState.from_header([span.trace_state]) if span.trace_state else None
    is_remote = bool(span.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
    parent = _context(span.trace_id, span.parent_span_id, is_remote=is_remote, state=state)
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace_id, span.span_id, is_remote=False, state=state),
        parent=parent if span.parent_span_id else None,
        resource=resource,
        attributes=values_of(span.attributes),
        events=[Event(event.name, values_of(event.attributes), event.time_unix_nano) for event in span.events],
        links=[
            Link(_context(link.trace_id, link.span_id, is_remote=True, state=None), values_of(link.attributes))
            for link in span.links
        ],
        kind=SpanKind(span.kind - 1) if 1 <= span.kind <= 5 else SpanKind.INTERNAL,
        status=_status(span.status),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def _context(trace_id: bytes, span_id: bytes, *, is_remote: bool, state: TraceState | None) -> SpanContext:
    return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote, _SAMPLED, state)


def _status(status: Status) -> SdkStatus:
    if status.code == Status.STATUS_CODE_ERROR:
        return SdkStatus(StatusCode.ERROR, status.message)
    return SdkStatus(StatusCode.OK if status.code == Status.STATUS_CODE_OK else StatusCode.UNSET)


def refuse_too_many(request: ExportTraceServiceRequest, limit: int) -> None:
    """Raise ValueError if a request has more resources, scopes or spans than ``limit``, as reading them takes time."""
    resources = request.resource_spans
    if len(resources) > limit:
        raise ValueError(f"telemetry of more than {limit} resources")
    if len(resources) + sum(len(of_resource.scope_spans) for of_resource in resources) > limit:
        raise ValueError(f"telemetry of more than {limit} resources and scopes")
    if sum(len(of_scope.spans) for of_resource in resources for of_scope in of_resource.scope_spans) > limit:
        raise ValueError(f"telemetry of more than {limit} spans")
