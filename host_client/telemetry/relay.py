"""OTLP bytes from a sandbox to OpenTelemetry spans, checked: the sandbox is not trusted.

A span of another trace is refused, and so is one with the id of another; who it is for is what the host
knows and not what the sandbox says. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from agent_runner.spans import Value

MAX_SPANS = 10_000
"""Most spans of one event; the runner sends 64 at a time."""

OWNED = frozenset({"user.id", "tenant.id", "session.id", "user.tier"})
"""Attributes that only the host sets: what is billed and shown to whom goes by them."""

_OURS = ("langfuse.", "gen_ai.usage.cost")
"""Beginnings of names that a backend takes for whom and how much, and no runner sends."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def decode(otlp: str, *, trace_ids: frozenset[str], common: Mapping[str, Value]) -> list[ReadableSpan]:
    """Return the spans of one ``telemetry`` event; raise ValueError for what is no such thing."""
    try:
        request = ExportTraceServiceRequest.FromString(base64.b64decode(otlp, validate=True))
    except (binascii.Error, DecodeError) as error:
        raise ValueError(f"telemetry that is no OTLP: {error}") from None
    return list(_spans(request, trace_ids, common))


def _spans(
    request: ExportTraceServiceRequest, trace_ids: frozenset[str], common: Mapping[str, Value]
) -> Iterator[ReadableSpan]:
    count = 0
    for of_resource in request.resource_spans:
        resource = Resource(_attributes(of_resource.resource.attributes))
        for of_scope in of_resource.scope_spans:
            scope = InstrumentationScope(of_scope.scope.name, of_scope.scope.version)
            for span in of_scope.spans:
                count += 1
                if count > MAX_SPANS:
                    raise ValueError(f"telemetry of more than {MAX_SPANS} spans")
                if span.trace_id.hex() not in trace_ids or len(span.span_id) != 8:
                    raise ValueError("telemetry for a trace that is not this session's")
                yield _span(span, resource, scope, common)


def _span(span: Any, resource: Resource, scope: InstrumentationScope, common: Mapping[str, Value]) -> ReadableSpan:
    state = TraceState.from_header([span.trace_state]) if span.trace_state else None
    trace_id = int.from_bytes(span.trace_id, "big")
    parent = None
    if span.parent_span_id:
        parent = SpanContext(trace_id, int.from_bytes(span.parent_span_id, "big"), True, _SAMPLED, state)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace_id, int.from_bytes(span.span_id, "big"), False, _SAMPLED, state),
        parent=parent,
        resource=resource,
        attributes={**_unowned(_attributes(span.attributes)), **common},
        events=[Event(e.name, _attributes(e.attributes), e.time_unix_nano) for e in span.events],
        # OTLP counts kinds from 1, with 0 for none given.
        kind=SpanKind(span.kind - 1) if 1 <= span.kind <= 5 else SpanKind.INTERNAL,
        status=_status(span.status),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def _unowned(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in OWNED and not name.startswith(_OURS)}


def _status(status: Any) -> Status:
    return Status(StatusCode.ERROR, status.message) if status.code == 2 else Status(StatusCode(min(status.code, 1)))


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else ""
