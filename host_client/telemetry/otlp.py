"""Read, select and convert spans in OTLP messages. Pure. Importing this module imports OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import Status as SdkStatus

from agent_runner.contract.spans import Value

from .batch import Batch, EndedSpan

ENVIRONMENT = "deployment.environment.name"
"""Attribute of a resource with the name of the deployment."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCALARS = ("string_value", "bool_value", "int_value", "double_value")


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the spans of a request."""
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield from scope_spans.spans


def ended_spans(request: ExportTraceServiceRequest) -> list[EndedSpan]:
    """Return the spans of a request in the form that observers and the sampler take."""
    return [
        EndedSpan(
            name=span.name,
            attributes=values_of(span.attributes),
            parent_span_id=span.parent_span_id.hex() or None,
            start_time=span.start_time_unix_nano,
            end_time=span.end_time_unix_nano,
            is_error=span.status.code == Status.STATUS_CODE_ERROR,
            span_id=span.span_id.hex(),
        )
        for span in spans_of(request)
    ]


def select(request: ExportTraceServiceRequest, mask: Iterable[bool]) -> ExportTraceServiceRequest:
    """Return a copy of a request with only those spans for which ``mask``, one value per span in order, is true."""
    selected = ExportTraceServiceRequest()
    is_selected = iter(mask)
    for resource_spans in request.resource_spans:
        resource = ResourceSpans(resource=resource_spans.resource, schema_url=resource_spans.schema_url)
        for scope_spans in resource_spans.scope_spans:
            if spans := [span for span in scope_spans.spans if next(is_selected)]:
                resource.scope_spans.add(scope=scope_spans.scope, schema_url=scope_spans.schema_url, spans=spans)
        if resource.scope_spans:
            selected.resource_spans.append(resource)
    return selected


def by_trace(request: ExportTraceServiceRequest) -> dict[str, ExportTraceServiceRequest]:
    """Split a request by trace: return one request for each trace id, in hex."""
    ids = [span.trace_id for span in spans_of(request)]
    if len(set(ids)) == 1:
        return {ids[0].hex(): request}
    return {trace_id.hex(): select(request, [each == trace_id for each in ids]) for trace_id in sorted(set(ids))}


def halves(body: bytes) -> tuple[Batch, Batch]:
    """Split a serialized request into two batches of half the spans; raise DecodeError for other bytes."""
    request = ExportTraceServiceRequest.FromString(body)
    count = sum(1 for _ in spans_of(request))
    middle = count // 2
    first = select(request, [number < middle for number in range(count)])
    second = select(request, [number >= middle for number in range(count)])
    return Batch(first.SerializeToString(), middle), Batch(second.SerializeToString(), count - middle)


def merged(requests: Iterable[ExportTraceServiceRequest]) -> ExportTraceServiceRequest:
    """Merge requests into one, in which each distinct resource and scope occurs once."""
    request = ExportTraceServiceRequest()
    resources: dict[tuple[bytes, str], ResourceSpans] = {}
    scopes: dict[tuple[bytes, str, bytes, str], ScopeSpans] = {}
    for resource_spans in (each for part in requests for each in part.resource_spans):
        resource = resource_spans.resource.SerializeToString(deterministic=True), resource_spans.schema_url
        if resource not in resources:
            resources[resource] = request.resource_spans.add(
                resource=resource_spans.resource, schema_url=resource_spans.schema_url
            )
        for scope_spans in resource_spans.scope_spans:
            scope = *resource, scope_spans.scope.SerializeToString(deterministic=True), scope_spans.schema_url
            if scope not in scopes:
                scopes[scope] = resources[resource].scope_spans.add(
                    scope=scope_spans.scope, schema_url=scope_spans.schema_url
                )
            scopes[scope].spans.extend(scope_spans.spans)
    return request


def name_environment(request: ExportTraceServiceRequest, environment: str) -> None:
    """Add the name of the deployment to each resource that has none."""
    for resource_spans in request.resource_spans:
        attributes = resource_spans.resource.attributes
        if not any(pair.key == ENVIRONMENT for pair in attributes):
            attributes.extend(key_values({ENVIRONMENT: environment}))


# -- attributes ------------------------------------------------------------------------------------------


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


@lru_cache(64)
def trace_state(header: str) -> str:
    """Return a ``tracestate`` header in OpenTelemetry's normal form, empty if it cannot be parsed."""
    return TraceState.from_header([header]).to_header() if header else ""


# -- OpenTelemetry's own class, for exporters and callers that expect it ---------------------------------


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
