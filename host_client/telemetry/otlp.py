"""Read and select spans in OTLP messages. Pure. Importing this module imports OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.trace import TraceState

from agent_runner.contract.otlp import SCOPE
from agent_runner.contract.otlp_messages import key_values, values_of

from .batch import Batch, EndedSpan

ENVIRONMENT = "deployment.environment.name"
"""Attribute of a resource with the name of the deployment."""


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the spans of a request."""
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield from scope_spans.spans


def are_own(request: ExportTraceServiceRequest) -> Iterator[bool]:
    """Yield for each span whether Sandspan made it, and not a process that a tool started."""
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield from repeat(scope_spans.scope.name == SCOPE, len(scope_spans.spans))


def own_spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the spans that Sandspan made."""
    return (span for span, is_own in zip(spans_of(request), are_own(request), strict=True) if is_own)


def ids_of(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the trace and span ids in a serialized request; raise DecodeError for other bytes."""
    return [(span.trace_id, span.span_id) for span in spans_of(ExportTraceServiceRequest.FromString(body))]


def ended_spans(request: ExportTraceServiceRequest) -> list[EndedSpan]:
    """Return Sandspan's own spans of a request in the form that observers and the sampler take.

    Spans that the processes of tools export are left out: the requests and errors in them are not the agent's.
    """
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
        for span in own_spans(request)
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


@lru_cache(64)
def trace_state(header: str) -> str:
    """Return a ``tracestate`` header in OpenTelemetry's normal form, empty if it cannot be parsed."""
    return TraceState.from_header([header]).to_header() if header else ""
