"""Convert spans to the classes of OpenTelemetry's SDK, which this module imports."""

from __future__ import annotations

import os
from functools import lru_cache

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from . import __version__
from .otlp import SCOPE
from .spans import Span

_SCOPE = InstrumentationScope(SCOPE, __version__)
_KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_VARIABLES = ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS")


def resource(service_name: str) -> Resource:
    """Return this process's resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override its attributes."""
    return _resource(service_name, tuple(os.environ.get(name) for name in _VARIABLES))


@lru_cache(16)  # detection starts a thread, and exporters send spans of different resources separately
def _resource(service_name: str, _environ: tuple[str | None, ...]) -> Resource:
    # `Resource.create` lets its argument override the environment; here the environment overrides.
    given = Resource({"service.name": service_name, "service.version": __version__})
    detected = Resource.create()
    if str(detected.attributes.get("service.name", "")).startswith("unknown_service"):
        return detected.merge(given)
    return given.merge(detected)


def readable(span: Span, of: Resource) -> ReadableSpan:
    """Return an ended span as the class that OpenTelemetry's exporters accept."""
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
