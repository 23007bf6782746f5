"""OTLP bytes from a sandbox to spans that may go on, checked and cleaned: the sandbox is not trusted.

A span of another trace is refused, and so is one with the id of another; who it is for is what the host
knows and not what the sandbox says. They are cleaned in the message that they come in, and stay in it: what a runner
never sends (links, fields that are not known) is taken out. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import binascii
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.trace import TraceState

from agent_runner.genai import CONTENT
from agent_runner.spans import Value

from . import clean
from .encoding import key_values
from .relayed import Relayed, compact, spans_of

MAX_SPANS = 10_000
"""Most spans of one event, and most resources and scopes that they are of; the runner sends 64 spans at a time."""

MAX_VALUES = 100_000
"""Most events, attributes and items of lists that the spans of one event have: two bytes may make one, to look at which
costs a microsecond."""

DAY_NS = 86_400 * 10**9
"""How far after now a moment may be: a backend that refuses one refuses all spans that were sent with it."""

_MAX_COUNT = 2**32 - 1
_NO_ID = bytes(8)

_OF_THE_HOST = ("deployment.", "service.namespace")
"""Beginnings of what OTEL_RESOURCE_ATTRIBUTES here says of the deployment, and so of its sandboxes."""

_SHORT = 2048
"""Bytes of a resource that is remembered: every event of a runner has the same."""

_FEW = 4
"""So many are deleted one by one: to leave only the others copies them all."""

_PLAIN = frozenset({"string_value", "bool_value", "int_value", "double_value"})
_NUMBERS = _PLAIN - {"string_value"}
_KINDS = range(Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CONSUMER + 1)
_FLAGS = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


def decode(
    otlp: str, *, trace_ids: Collection[str], common: Mapping[str, Value], given: Collection[str] = ()
) -> Relayed:
    """Return the spans of one ``telemetry`` event; raise ValueError for what is no such thing.

    ``common`` goes on every span. ``given`` are texts that the host told the sandbox: they come back as they were, and
    a trace state is one of them or none.
    """
    try:
        body = binascii.a2b_base64(otlp, strict_mode=True)
        request = ExportTraceServiceRequest.FromString(body)
    except (binascii.Error, DecodeError) as error:
        raise ValueError(f"telemetry that is no OTLP: {error}") from None
    _drop_empty(request)
    request.DiscardUnknownFields()
    said = list(_cleaned(request, trace_ids, _Cleaner(common.keys(), given)))
    pairs = key_values(common)
    for span, values in zip(spans_of(request), said, strict=True):
        span.attributes.extend(pairs)
        values.update(common)
    relayed = Relayed(request, said)
    return relayed if len(relayed.encoded()) >= len(body) // 2 else Relayed(compact(request), said)


def _cleaned(
    request: ExportTraceServiceRequest, trace_ids: Collection[str], cleaner: _Cleaner
) -> Iterator[dict[str, Any]]:
    """Clean all of it and yield each span's attributes; raise ValueError for what is not of this session."""
    for of_resource in request.resource_spans:
        of_resource.ClearField("schema_url")
        _clean_resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            of_scope.ClearField("schema_url")
            _clean_scope(of_scope.scope)
            for span in of_scope.spans:
                above = span.parent_span_id
                if span.trace_id.hex() not in trace_ids or not _is_id(span.span_id) or (above and not _is_id(above)):
                    raise ValueError("telemetry for a trace that is not this session's")
                yield cleaner.clean(span)


def _is_id(span_id: bytes) -> bool:
    return len(span_id) == 8 and span_id != _NO_ID


def _drop_empty(request: ExportTraceServiceRequest) -> None:
    """Leave resources and scopes that have spans; raise ValueError for too many of anything."""
    resources = request.resource_spans
    if len(resources) == 1 and len(scopes := resources[0].scope_spans) == 1 and 0 < len(scopes[0].spans) <= MAX_SPANS:
        return  # what a runner sends
    if len(resources) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} resources")
    if len(resources) + sum(len(of_resource.scope_spans) for of_resource in resources) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} resources and scopes")
    if sum(len(of_scope.spans) for of_resource in resources for of_scope in of_resource.scope_spans) > MAX_SPANS:
        raise ValueError(f"telemetry of more than {MAX_SPANS} spans")
    for of_resource in resources:
        if not all(of_scope.spans for of_scope in of_resource.scope_spans):
            _leave_only(of_resource.scope_spans, [of_scope for of_scope in of_resource.scope_spans if of_scope.spans])
    if not all(of_resource.scope_spans for of_resource in resources):
        _leave_only(resources, [of_resource for of_resource in resources if of_resource.scope_spans])


def _leave_only(messages: Any, wanted: Sequence[Any]) -> None:
    """Leave of a repeated field some of its own messages: to delete them one by one takes quadratic time."""
    del messages[:]
    messages.extend(wanted)


def _clean_scope(scope: InstrumentationScope) -> None:
    if scope.attributes:
        scope.ClearField("attributes")
    if (name := clean.name[scope.name]) != scope.name:
        scope.name = name
    if (version := clean.name[scope.version]) != scope.version:
        scope.version = version


def _clean_resource(resource: Resource) -> None:
    """Leave of a resource which program made the spans, and let the host say how that is deployed."""
    said, environment = resource.SerializeToString(), os.environ.get(OTEL_RESOURCE_ATTRIBUTES, "")
    cleaned = _resource if len(said) <= _SHORT else _resource.__wrapped__
    resource.CopyFrom(cleaned(said, environment))


@lru_cache(64)
def _resource(said: bytes, environment: str) -> Resource:
    pairs = ((pair.key, getattr(pair.value, "string_value", "")) for pair in Resource.FromString(said).attributes)
    attributes: dict[str, Any] = {key: value for key, value in clean.resource(pairs) if value}
    if environment:
        detected = OTELResourceDetector().detect().attributes
        attributes.update({key: value for key, value in detected.items() if key.startswith(_OF_THE_HOST)})
    return Resource(attributes=key_values(attributes))


def _clean_status(status: Status) -> None:
    if status.code == Status.STATUS_CODE_ERROR:
        status.message = clean.name(status.message)
        return
    if status.message:
        status.ClearField("message")
    if status.code not in (Status.STATUS_CODE_OK, Status.STATUS_CODE_UNSET):
        status.code = Status.STATUS_CODE_UNSET


@lru_cache(64)
def _state(header: str) -> str:
    return TraceState.from_header([header]).to_header()


class _Cleaner:
    """Cleans the spans of one event. Raises ValueError where they have too many values.

    ``owned`` are names that the host will say itself.
    """

    def __init__(self, owned: Collection[str], given: Collection[str]) -> None:
        self._owned = owned
        self._given = given
        self._left = MAX_VALUES
        self._now = time.time_ns()

    def clean(self, span: Span) -> dict[str, Any]:
        """Leave of a span what the host would say itself; return its attributes."""
        # What is as it should be is not written again: that costs more than to look.
        if (name := clean.span_name[span.name]) != span.name:
            span.name = name
        if span.kind not in _KINDS:
            span.kind = Span.SPAN_KIND_INTERNAL
        if span.trace_state:
            span.trace_state = _state(span.trace_state) if span.trace_state in self._given else ""
        if span.links:
            span.ClearField("links")
        if span.HasField("status"):
            _clean_status(span.status)
        if span.flags & ~_FLAGS:
            span.flags &= _FLAGS
        self._clean_times(span)
        if span.events:
            self._clean_events(span)
        return self._clean_attributes(span, self._owned)

    def _clean_times(self, span: Span) -> None:
        start, told = span.start_time_unix_nano, span.end_time_unix_nano
        if (end := self._moment(told)) != told:
            span.end_time_unix_nano = end
        if not 0 < start <= end:
            span.start_time_unix_nano = end

    def _moment(self, told: int) -> int:
        """Return nanoseconds since the epoch that a backend takes."""
        return min(told or self._now, self._now + DAY_NS)

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise ValueError(f"telemetry of more than {MAX_VALUES} attributes and events")

    def _clean_events(self, span: Span) -> None:
        self._count(len(span.events))
        if (cut := len(span.events) - clean.MAX_EVENTS) > 0:
            span.dropped_events_count = min(span.dropped_events_count + cut, _MAX_COUNT)
            del span.events[clean.MAX_EVENTS :]
        for event in span.events:
            event.name = clean.name(event.name)
            event.time_unix_nano = self._moment(event.time_unix_nano)
            self._clean_attributes(event, ())

    def _clean_attributes(self, of: Span | Span.Event, owned: Collection[str]) -> dict[str, Any]:
        """Leave of attributes what is the sandbox's to say, of two of a name the last, and of too many the last.

        Texts are cleaned at one go: a span has a dozen attributes, and a call for each costs as much again.
        """
        values: dict[str, Any] = {}
        kept: list[KeyValue] = []
        unwanted: list[int] = []
        pairs, names, given, texts = of.attributes, clean.attribute, self._given, clean.texts
        self._count(index := len(pairs))
        for pair in reversed(pairs):
            if len(kept) == clean.MAX_ATTRIBUTES:
                of.dropped_attributes_count = min(of.dropped_attributes_count + index, _MAX_COUNT)
                break
            index -= 1
            name = names[key := pair.key]
            if not name or name in owned or name in values:
                unwanted.append(index)
                continue
            if name != key:
                pair.key = name
            kind = (value := pair.value).WhichOneof("value")
            if kind == "string_value":
                said = value.string_value
                cleaned = clean.said(name, said, given) if name in CONTENT or said in given else texts[said]
                if cleaned != said:
                    value.string_value = cleaned
                values[name] = cleaned
            else:
                values[name] = getattr(value, kind) if kind in _NUMBERS else self._clean_further(value)
            kept.append(pair)
        if len(kept) + len(unwanted) < len(pairs) or len(unwanted) > _FEW:
            _leave_only(pairs, kept[::-1])
        else:
            for index in unwanted:
                del pairs[index]
        return values

    def _clean_further(self, value: AnyValue) -> str | tuple[Any, ...]:
        """Leave a list of texts or numbers; what else a sandbox may think of becomes an empty text."""
        if not value.HasField("array_value"):
            value.string_value = ""
            return ""
        items = value.array_value.values
        self._count(len(items))
        if len(items) > clean.MAX_ITEMS:
            del items[clean.MAX_ITEMS :]
        return _clean_items(items)


def _clean_items(items: Any) -> tuple[Any, ...]:
    kinds = [item.WhichOneof("value") for item in items]
    if len(set(kinds)) == 1 and kinds[0] in _NUMBERS:
        return tuple(getattr(item, kinds[0]) for item in items)
    texts: list[str] = []
    for item, kind in zip(items, kinds, strict=True):  # all texts: no backend takes a mixture
        texts.append(clean.text(str(getattr(item, kind))) if kind in _PLAIN else "")
        if kind != "string_value" or item.string_value != texts[-1]:
            item.string_value = texts[-1]
    return tuple(texts)
