"""Spans of a sandbox as the OTLP message that they came in: what nobody looks at is not made an object of.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status

from .encoding import readable_of, status_of, values_of


def spans_of(request: ExportTraceServiceRequest) -> Iterator[ProtoSpan]:
    """Yield the spans of a request."""
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            yield from of_scope.spans


def compact(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Return a copy without the memory of what was taken out, which a message gives back with all of it at once."""
    copy = ExportTraceServiceRequest()
    copy.CopyFrom(request)
    return copy


class RelayedSpan:
    """What observers and the sampler ask a span for, read from the message when they ask."""

    __slots__ = ("_attributes", "_span", "name")

    def __init__(self, span: ProtoSpan) -> None:
        self.name: str = span.name
        self._span = span
        self._attributes: Mapping[str, Any] | None = None

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Its attributes, by name."""
        if self._attributes is None:
            self._attributes = values_of(self._span.attributes)
        return self._attributes

    @property
    def parent(self) -> SpanContext | None:
        """The span above it."""
        trace_id, span_id = self._span.trace_id, self._span.parent_span_id
        if not span_id:
            return None
        return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=True)

    @property
    def start_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._span.start_time_unix_nano

    @property
    def end_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._span.end_time_unix_nano

    @property
    def status(self) -> Status:
        """Whether it failed."""
        return status_of(self._span.status)


class Relayed:
    """Spans that were checked (see `relay`). Not changed any more once it was handed on."""

    def __init__(self, request: ExportTraceServiceRequest) -> None:
        self._request = request
        self._spans: list[RelayedSpan] | None = None

    def __len__(self) -> int:
        return sum(len(scope.spans) for scope in self._scopes())

    @property
    def size(self) -> int:
        """How many bytes it is when serialized."""
        return self._request.ByteSize()

    def _scopes(self) -> Iterator[ScopeSpans]:
        for of_resource in self._request.resource_spans:
            yield from of_resource.scope_spans

    def keep_only(self, is_wanted: Callable[[ProtoSpan], bool]) -> int:
        """Take out all other spans; return how many they were."""
        removed = 0
        for scope in self._scopes():
            unwanted = [number for number, span in enumerate(scope.spans) if not is_wanted(span)]
            for number in reversed(unwanted):
                del scope.spans[number]
            removed += len(unwanted)
        if removed:
            self._request, self._spans = compact(self._request), None
        return removed

    def spans(self) -> list[RelayedSpan]:
        """Return its spans, to be asked: the same ones each time, as they remember what they were asked."""
        if self._spans is None:
            self._spans = [RelayedSpan(span) for span in spans_of(self._request)]
        return self._spans

    def readable(self) -> list[ReadableSpan]:
        """Return its spans as OpenTelemetry's SDK has them."""
        return list(readable_of(self._request))

    def by_trace(self) -> dict[str, Relayed]:
        """Return its spans by the id of their trace, in hex; hardly ever are they of more than one."""
        ids = {span.trace_id for span in spans_of(self._request)}
        if len(ids) == 1:
            return {ids.pop().hex(): self}
        return {trace_id.hex(): self._of(trace_id) for trace_id in sorted(ids)}

    def _of(self, trace_id: bytes) -> Relayed:
        part = Relayed(compact(self._request))
        part.keep_only(lambda span: span.trace_id == trace_id)
        return part

    def encoded(self) -> bytes:
        """Return a serialized OTLP request."""
        return self._request.SerializeToString()
