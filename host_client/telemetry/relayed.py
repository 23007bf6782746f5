"""Spans of a sandbox as the OTLP message that they came in: what nobody looks at is not made an object of.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status

from .encoding import readable_of, status_of


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
    """What observers and the sampler ask a span for, most of it read from the message when they ask."""

    __slots__ = ("_message", "attributes", "name")

    def __init__(self, message: ProtoSpan, attributes: Mapping[str, Any]) -> None:
        self.name: str = message.name
        self.attributes = attributes
        self._message = message

    @property
    def parent(self) -> SpanContext | None:
        """The span above it."""
        trace_id, span_id = self._message.trace_id, self._message.parent_span_id
        if not span_id:
            return None
        return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=True)

    @property
    def start_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._message.start_time_unix_nano

    @property
    def end_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._message.end_time_unix_nano

    @property
    def status(self) -> Status:
        """Whether it failed."""
        return status_of(self._message.status)


class Relayed:
    """Spans that were checked (see `relay`), and the attributes of each. Not changed any more once it was handed on."""

    def __init__(self, request: ExportTraceServiceRequest, attributes: Sequence[Mapping[str, Any]]) -> None:
        self._request = request
        self._attributes = attributes
        self._encoded: bytes | None = None

    def __len__(self) -> int:
        return len(self._attributes)

    def keep_only(self, is_wanted: Callable[[ProtoSpan], bool]) -> int:
        """Take out all other spans; return how many they were."""
        wanted = [is_wanted(span) for span in spans_of(self._request)]
        if all(wanted):
            return 0
        answers = iter(wanted)
        for of_resource in self._request.resource_spans:
            for of_scope in of_resource.scope_spans:
                unwanted = [number for number in range(len(of_scope.spans)) if not next(answers)]
                for number in reversed(unwanted):
                    del of_scope.spans[number]
        self._request, self._encoded = compact(self._request), None
        self._attributes = list(compress(self._attributes, wanted))
        return wanted.count(False)

    def spans(self) -> Iterator[RelayedSpan]:
        """Yield its spans, to be asked."""
        return map(RelayedSpan, spans_of(self._request), self._attributes)

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
        part = Relayed(compact(self._request), self._attributes)
        part.keep_only(lambda span: span.trace_id == trace_id)
        return part

    def encoded(self) -> bytes:
        """Return a serialized OTLP request; made once."""
        if self._encoded is None:
            self._encoded = self._request.SerializeToString()
        return self._encoded
