"""Turn the OTLP bytes that a sandbox sends into clean OTLP messages: the trust boundary of telemetry.

A sandbox is not trusted, so nothing is passed on as it came: a new request is written field by field. Whatever is not
written below is left out, such as links, schema URLs and fields that this version does not know. Attributes that only
the host may set (`clean.OWNED`) are left out too. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES
from opentelemetry.sdk.resources import OTELResourceDetector

from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Value
from host_client.telemetry.otlp import key_values, trace_state

from . import clean

MAX_SPANS = 10_000
"""Limit of spans in one event, and of resources and scopes together. The runner sends 64 spans at a time."""

MAX_VALUES = 100_000
"""Limit of span events, attributes and list items in one event: two bytes can make one, and cleaning it takes 2 us."""

DAY_NS = 86_400 * 10**9
"""How far ahead of now a time may be. A backend that refuses one time refuses all spans that were sent with it."""

_MAX_COUNT = 2**32 - 1
_NO_ID = bytes(8)

_OF_THE_DEPLOYMENT = ("deployment.", "service.namespace")
"""Beginnings of resource attributes that the host's OTEL_RESOURCE_ATTRIBUTES sets for its sandboxes too."""

_KINDS = range(Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CONSUMER + 1)
_FLAGS = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_NUMBERS = frozenset({"bool_value", "int_value", "double_value"})


def decode(
    otlp: str, *, trace_ids: Collection[str], common: Mapping[str, Value], given: Collection[str] = ()
) -> ExportTraceServiceRequest:
    """Return the spans of one ``telemetry`` event, cleaned; raise ValueError for anything that is to be refused.

    ``trace_ids`` are the traces of the session, in hex: spans of others are refused. ``common`` are attributes that the
    host puts on every span. ``given`` are texts that the host sent to the sandbox, such as who decided an approval:
    they may come back unchanged, and a trace state must be one of them.
    """
    try:
        untrusted = ExportTraceServiceRequest.FromString(msgspec.convert(otlp, bytes))  # bytes in JSON are base64
    except (msgspec.ValidationError, DecodeError) as error:
        raise ValueError(f"telemetry that is no OTLP: {error}") from None
    _refuse_too_many(untrusted)
    return _Cleaner(trace_ids, common, given).request(untrusted)


def _refuse_too_many(request: ExportTraceServiceRequest) -> None:
    """Raise ValueError where looking at each resource, scope and span would take seconds."""
    resources = request.resource_spans
    if len(resources) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} resources")
    if len(resources) + sum(len(of_resource.scope_spans) for of_resource in resources) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} resources and scopes")
    if sum(len(of_scope.spans) for of_resource in resources for of_scope in of_resource.scope_spans) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} spans")


class _Cleaner:
    """Writes the clean copy of one request. Raises ValueError for foreign spans and for too many values."""

    def __init__(self, trace_ids: Collection[str], common: Mapping[str, Value], given: Collection[str]) -> None:
        self._trace_ids = frozenset(map(bytes.fromhex, trace_ids))
        self._common = key_values(common)
        self._common_names = common.keys()
        self._given = given
        self._now = time.time_ns()
        self._values = 0

    def request(self, said: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
        """Return the clean copy; resources and scopes without spans are left out."""
        request = ExportTraceServiceRequest()
        for said_resource in said.resource_spans:
            if not (said_scopes := [of_scope for of_scope in said_resource.scope_spans if of_scope.spans]):
                continue
            of_resource = request.resource_spans.add(resource=self._resource(said_resource.resource))
            for said_scope in said_scopes:
                of_scope = of_resource.scope_spans.add(scope=_scope(said_scope.scope))
                for said_span in said_scope.spans:
                    self._span(said_span, of_scope.spans.add())
        return request

    def _resource(self, said: Resource) -> Resource:
        """Return which program made the spans, and from the host's environment how it is deployed."""
        self._count(len(said.attributes))
        pairs = ((pair.key, pair.value.string_value) for pair in said.attributes)
        kept = clean.resource(pairs) | _deployment(os.environ.get(OTEL_RESOURCE_ATTRIBUTES, ""))
        return Resource(attributes=key_values(kept))

    def _span(self, said: Span, span: Span) -> None:
        parent = said.parent_span_id
        if said.trace_id not in self._trace_ids or not _is_id(said.span_id) or (parent and not _is_id(parent)):
            raise ValueError("telemetry for a trace that is not this session's")
        span.trace_id, span.span_id, span.parent_span_id = said.trace_id, said.span_id, parent
        span.name = clean.span_name(said.name)
        span.kind = said.kind if said.kind in _KINDS else Span.SPAN_KIND_INTERNAL
        span.flags = said.flags & _FLAGS
        if said.trace_state in self._given:
            span.trace_state = trace_state(said.trace_state)
        span.end_time_unix_nano = end = self._time(said.end_time_unix_nano)
        start = said.start_time_unix_nano
        span.start_time_unix_nano = start if 0 < start <= end else end
        if said.HasField("status"):
            span.status.CopyFrom(_status(said.status))
        self._events(said, span)
        self._attributes(said, span, self._common_names)
        span.attributes.extend(self._common)
        span.dropped_links_count = said.dropped_links_count

    def _time(self, said: int) -> int:
        """Return nanoseconds since the epoch that a backend accepts: now if there are none, at most a day ahead."""
        return min(said or self._now, self._now + DAY_NS)

    def _events(self, said: Span, span: Span) -> None:
        self._count(len(said.events))
        cut = max(0, len(said.events) - clean.MAX_EVENTS)
        span.dropped_events_count = min(said.dropped_events_count + cut, _MAX_COUNT)
        for said_event in said.events[: clean.MAX_EVENTS]:
            time_unix_nano = self._time(said_event.time_unix_nano)
            event = span.events.add(name=brief(said_event.name), time_unix_nano=time_unix_nano)
            self._attributes(said_event, event)

    def _attributes(
        self, said: Span | Span.Event, to: Span | Span.Event, common_names: Collection[str] = frozenset()
    ) -> None:
        """Copy the attributes that a sandbox may set: of two with one name the last, of too many the last."""
        self._count(len(said.attributes))
        kept: dict[str, AnyValue] = {}
        dropped = 0
        for looked_at, pair in enumerate(reversed(said.attributes)):
            if len(kept) == clean.MAX_ATTRIBUTES:
                dropped = len(said.attributes) - looked_at
                break
            name = clean.attribute(pair.key)
            if name and name not in common_names and name not in kept:
                kept[name] = pair.value
        for name in reversed(kept):
            self._value(name, kept[name], to.attributes.add(key=name).value)
        to.dropped_attributes_count = min(said.dropped_attributes_count + dropped, _MAX_COUNT)

    def _value(self, name: str, said: AnyValue, value: AnyValue) -> None:
        kind = said.WhichOneof("value")
        if kind == "string_value":
            value.string_value = clean.said(name, said.string_value, self._given)
        elif kind in _NUMBERS:
            setattr(value, kind, getattr(said, kind))
        elif kind == "array_value":
            self._count(len(said.array_value.values))
            _list(said.array_value.values[: clean.MAX_ITEMS], value)
        else:  # a map, bytes or nothing: the runner sends none, and not every backend takes them
            value.string_value = ""

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise ValueError(f"telemetry of more than {MAX_VALUES} attributes and events")


def _list(said: Sequence[AnyValue], value: AnyValue) -> None:
    """Copy a list of numbers of one kind; make texts of any other, as no backend takes a mixture."""
    value.array_value.SetInParent()
    kinds = {item.WhichOneof("value") for item in said}
    are_numbers = len(kinds) == 1 and kinds <= _NUMBERS
    for item in said:
        kind, copy = item.WhichOneof("value"), value.array_value.values.add()
        if kind is None or not (kind == "string_value" or kind in _NUMBERS):
            copy.string_value = ""
        elif are_numbers:
            setattr(copy, kind, getattr(item, kind))
        else:
            copy.string_value = clean.text(str(getattr(item, kind)))


def _is_id(span_id: bytes) -> bool:
    return len(span_id) == 8 and span_id != _NO_ID


def _scope(said: InstrumentationScope) -> InstrumentationScope:
    return InstrumentationScope(name=brief(said.name), version=brief(said.version))


def _status(said: Status) -> Status:
    """Return the code, and for an error its message."""
    if said.code == Status.STATUS_CODE_ERROR:
        return Status(code=said.code, message=brief(said.message))
    return Status(code=said.code if said.code == Status.STATUS_CODE_OK else Status.STATUS_CODE_UNSET)


@lru_cache(4)
def _deployment(resource_attributes: str) -> dict[str, str]:
    """Return the attributes of the host's OTEL_RESOURCE_ATTRIBUTES that hold for its sandboxes too."""
    if not resource_attributes:
        return {}
    detected = OTELResourceDetector().detect().attributes  # reads the same variable
    return {name: str(value) for name, value in detected.items() if name.startswith(_OF_THE_DEPLOYMENT)}
