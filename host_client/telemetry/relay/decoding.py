"""Turn the OTLP bytes that a sandbox sends into clean OTLP messages: the trust boundary of telemetry.

A sandbox is not trusted, so no message is passed on: a new request is written field by field. Fields that are not
written below are left out, such as links, schema URLs and fields that this version does not know. Attributes that only
the host may set (`ownership.OF_THE_HOST`) are left out too. Importing this module imports OpenTelemetry.
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

from agent_runner.contract.otlp import SCOPE
from agent_runner.contract.otlp_messages import key_values, refuse_too_many
from agent_runner.contract.ownership import OF_THE_AGENT_PREFIXES
from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Value
from host_client.telemetry.otlp import trace_state

from . import clean

MAX_SPANS = 10_000
"""Maximum number of spans in one event, and of resources and scopes together. The runner sends 64 spans at a time."""

MAX_VALUES = 100_000
"""Maximum number of span events, attributes and list items in one event. Two bytes can be one; each takes 2 us here."""

DAY_NS = 86_400 * 10**9
"""Nanoseconds that a time may lie ahead of now: a backend that refuses one time refuses the whole request."""

_MAX_COUNT = 2**32 - 1
_NO_ID = bytes(8)

_OF_THE_DEPLOYMENT = ("deployment.", "service.namespace")
"""Prefixes of attributes in the host's OTEL_RESOURCE_ATTRIBUTES that spans of its sandboxes get too."""

_KINDS = range(Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CONSUMER + 1)
_FLAGS = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_NUMBERS = frozenset({"bool_value", "int_value", "double_value"})


def decode(
    otlp: str, *, trace_ids: Collection[str], common: Mapping[str, Value], given: Collection[str] = ()
) -> ExportTraceServiceRequest:
    """Return the cleaned spans of one ``telemetry`` event; raise ValueError if it is refused as a whole.

    ``trace_ids`` are the traces of the session, in hex: spans of others are refused. ``common`` are attributes that the
    host adds to every span. ``given`` are texts that the host sent to the sandbox, such as the name of an approver:
    spans may hold them unchanged, and a trace state is kept only if it is one of them.
    """
    try:
        untrusted = ExportTraceServiceRequest.FromString(msgspec.convert(otlp, bytes))  # bytes in JSON are base64
    except (msgspec.ValidationError, DecodeError) as error:
        raise ValueError(f"telemetry that cannot be decoded as OTLP: {error}") from None
    refuse_too_many(untrusted, MAX_SPANS)
    return _Cleaner(trace_ids, common, given).request(untrusted)


class _Cleaner:
    """Write the clean copy of one request. Methods raise ValueError for foreign spans and for too many values."""

    def __init__(self, trace_ids: Collection[str], common: Mapping[str, Value], given: Collection[str]) -> None:
        self._trace_ids = frozenset(map(bytes.fromhex, trace_ids))
        self._common = key_values(common)
        self._common_names = common.keys()
        self._given = given
        self._now = time.time_ns()
        self._values = 0

    def request(self, untrusted: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
        """Return the clean copy; resources and scopes without spans are left out."""
        request = ExportTraceServiceRequest()
        for untrusted_resource in untrusted.resource_spans:
            if not (untrusted_scopes := [of_scope for of_scope in untrusted_resource.scope_spans if of_scope.spans]):
                continue
            of_resource = request.resource_spans.add(resource=self._resource(untrusted_resource.resource))
            for untrusted_scope in untrusted_scopes:
                of_scope = of_resource.scope_spans.add(scope=_scope(untrusted_scope.scope))
                left_out = () if of_scope.scope.name == SCOPE else OF_THE_AGENT_PREFIXES
                for untrusted_span in untrusted_scope.spans:
                    self._span(untrusted_span, of_scope.spans.add(), left_out)
        return request

    def _resource(self, untrusted: Resource) -> Resource:
        """Return which program made the spans, and from the host's environment how it is deployed."""
        self._count(len(untrusted.attributes))
        pairs = ((pair.key, pair.value.string_value) for pair in untrusted.attributes)
        attributes = clean.resource(pairs) | _deployment(os.environ.get(OTEL_RESOURCE_ATTRIBUTES, ""))
        return Resource(attributes=key_values(attributes))

    def _span(self, untrusted: Span, span: Span, left_out: tuple[str, ...]) -> None:
        """Write the clean copy of a span without the attributes whose names begin with ``left_out``."""
        parent = untrusted.parent_span_id
        if (
            untrusted.trace_id not in self._trace_ids
            or not _is_id(untrusted.span_id)
            or (parent and not _is_id(parent))
        ):
            raise ValueError("telemetry for a trace that is not this session's")
        span.trace_id, span.span_id, span.parent_span_id = untrusted.trace_id, untrusted.span_id, parent
        span.name = clean.span_name(untrusted.name)
        span.kind = untrusted.kind if untrusted.kind in _KINDS else Span.SPAN_KIND_INTERNAL
        span.flags = untrusted.flags & _FLAGS
        if untrusted.trace_state in self._given:
            span.trace_state = trace_state(untrusted.trace_state)
        span.end_time_unix_nano = end = self._time(untrusted.end_time_unix_nano)
        start = untrusted.start_time_unix_nano
        span.start_time_unix_nano = start if 0 < start <= end else end
        if untrusted.HasField("status"):
            span.status.CopyFrom(_status(untrusted.status))
        self._events(untrusted, span)
        self._attributes(untrusted, span, self._common_names, left_out)
        span.attributes.extend(self._common)
        span.dropped_links_count = untrusted.dropped_links_count

    def _time(self, untrusted: int) -> int:
        """Return a time that backends accept: now for a missing time, at most `DAY_NS` ahead of now."""
        return min(untrusted or self._now, self._now + DAY_NS)

    def _events(self, untrusted: Span, span: Span) -> None:
        self._count(len(untrusted.events))
        cut = max(0, len(untrusted.events) - clean.MAX_EVENTS)
        span.dropped_events_count = min(untrusted.dropped_events_count + cut, _MAX_COUNT)
        for untrusted_event in untrusted.events[: clean.MAX_EVENTS]:
            time_unix_nano = self._time(untrusted_event.time_unix_nano)
            event = span.events.add(name=brief(untrusted_event.name), time_unix_nano=time_unix_nano)
            self._attributes(untrusted_event, event)

    def _attributes(
        self,
        untrusted: Span | Span.Event,
        to: Span | Span.Event,
        common_names: Collection[str] = frozenset(),
        left_out: tuple[str, ...] = (),
    ) -> None:
        """Copy the attributes that a sandbox may set: of two with the same name the last, of too many the last ones."""
        self._count(len(untrusted.attributes))
        kept: dict[str, AnyValue] = {}
        dropped = 0
        for position, pair in enumerate(reversed(untrusted.attributes)):
            if len(kept) == clean.MAX_ATTRIBUTES:
                dropped = len(untrusted.attributes) - position
                break
            name = clean.attribute_name(pair.key)
            if name and name not in common_names and name not in kept and not name.startswith(left_out):
                kept[name] = pair.value
        for name in reversed(kept):
            self._value(name, kept[name], to.attributes.add(key=name).value)
        to.dropped_attributes_count = min(untrusted.dropped_attributes_count + dropped, _MAX_COUNT)

    def _value(self, name: str, untrusted: AnyValue, value: AnyValue) -> None:
        kind = untrusted.WhichOneof("value")
        if kind == "string_value":
            value.string_value = clean.attribute_text(name, untrusted.string_value, self._given)
        elif kind in _NUMBERS:
            setattr(value, kind, getattr(untrusted, kind))
        elif kind == "array_value":
            self._count(len(untrusted.array_value.values))
            _list(untrusted.array_value.values[: clean.MAX_ITEMS], value)
        else:  # a map, bytes or nothing: runners send none, and not every backend accepts them
            value.string_value = ""

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise ValueError(f"telemetry of more than {MAX_VALUES} attributes and events")


def _list(untrusted: Sequence[AnyValue], value: AnyValue) -> None:
    """Copy a list of numbers of one kind; turn other items into texts, because backends accept no mixed lists."""
    value.array_value.SetInParent()
    kinds = {item.WhichOneof("value") for item in untrusted}
    are_numbers = len(kinds) == 1 and kinds <= _NUMBERS
    for item in untrusted:
        kind, copy = item.WhichOneof("value"), value.array_value.values.add()
        if kind is None or not (kind == "string_value" or kind in _NUMBERS):
            copy.string_value = ""
        elif are_numbers:
            setattr(copy, kind, getattr(item, kind))
        else:
            copy.string_value = clean.text(str(getattr(item, kind)))


def _is_id(span_id: bytes) -> bool:
    return len(span_id) == 8 and span_id != _NO_ID


def _scope(untrusted: InstrumentationScope) -> InstrumentationScope:
    return InstrumentationScope(name=brief(untrusted.name), version=brief(untrusted.version))


def _status(untrusted: Status) -> Status:
    """Return the code and, for an error, the cleaned message."""
    if untrusted.code == Status.STATUS_CODE_ERROR:
        return Status(code=untrusted.code, message=brief(untrusted.message))
    return Status(code=untrusted.code if untrusted.code == Status.STATUS_CODE_OK else Status.STATUS_CODE_UNSET)


@lru_cache(4)
def _deployment(host_attributes: str) -> dict[str, str]:
    """Return the deployment's attributes from the host's OTEL_RESOURCE_ATTRIBUTES, whose value is given."""
    if not host_attributes:
        return {}
    detected = OTELResourceDetector().detect().attributes  # reads the same variable
    return {name: str(value) for name, value in detected.items() if name.startswith(_OF_THE_DEPLOYMENT)}
