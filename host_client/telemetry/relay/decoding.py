"""OTLP bytes from a sandbox to spans that may go on, checked and cleaned: the sandbox is not trusted.

A span of another trace is refused, and so is one with the id of another; who it is for is what the host
knows and not what the sandbox says. They are cleaned in the message that they come in, and stay in it: what a runner
never sends (links, fields that are not known) is taken out. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.trace import TraceState

from agent_runner.contract.memory import Remembered
from agent_runner.contract.spans import Value
from host_client.telemetry.otlp import key_values

from . import attributes, clean
from .relayed import Relayed, compact
from .shallow import Message, Request

MAX_SPANS = 10_000
"""Most spans of one event, and most resources and scopes that they are of; the runner sends 64 spans at a time."""

DAY_NS = 86_400 * 10**9
"""How far after now a moment may be: a backend that refuses one refuses all spans that were sent with it."""

_MAX_COUNT = 2**32 - 1
_NO_ID = bytes(8)

_OF_THE_HOST = ("deployment.", "service.namespace")
"""Beginnings of what OTEL_RESOURCE_ATTRIBUTES here says of the deployment, and so of its sandboxes."""

_SHORT = 2048
"""Bytes of a resource that is remembered: every event of a runner has the same."""

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
        body = msgspec.convert(otlp, bytes)  # base64, in a quarter of the time of Python's own
        request = Request.FromString(body)
        _drop_empty(request)
        request.DiscardUnknownFields()
        said = list(_cleaned(request, trace_ids, _Cleaner(common, given)))
    except (msgspec.ValidationError, DecodeError) as error:
        raise ValueError(f"telemetry that is no OTLP: {error}") from None
    relayed = Relayed(request, said)
    return relayed if len(relayed.encoded()) >= len(body) // 2 else Relayed(compact(request), said)


def _cleaned(request: Message, trace_ids: Collection[str], cleaner: _Cleaner) -> Iterator[dict[str, Any]]:
    """Clean all of it and yield each span's attributes; raise ValueError for what is not of this session."""
    known = frozenset(map(bytes.fromhex, trace_ids))
    for of_resource in request.resource_spans:
        of_resource.resource = _clean_resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            of_scope.scope = _scope(of_scope.scope)
            for span in of_scope.spans:
                above = span.parent_span_id
                if span.trace_id not in known or not _is_id(span.span_id) or (above and not _is_id(above)):
                    raise ValueError("telemetry for a trace that is not this session's")
                yield cleaner.clean(span)


def _is_id(span_id: bytes) -> bool:
    return len(span_id) == 8 and span_id != _NO_ID


def _drop_empty(request: Message) -> None:
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


def _clean_scope(said: bytes) -> bytes:
    """Return of a scope who made the spans."""
    scope = InstrumentationScope.FromString(said)
    return InstrumentationScope(name=clean.name(scope.name), version=clean.name(scope.version)).SerializeToString()


_scope = Remembered(_clean_scope)


def _clean_resource(said: bytes) -> bytes:
    cleaned = _resource if len(said) <= _SHORT else _resource.__wrapped__
    return cleaned(said, os.environ.get(OTEL_RESOURCE_ATTRIBUTES, ""))


@lru_cache(64)
def _resource(said: bytes, environment: str) -> bytes:
    """Return of a resource which program made the spans, and from here how that is deployed."""
    pairs = ((pair.key, getattr(pair.value, "string_value", "")) for pair in Resource.FromString(said).attributes)
    kept: dict[str, Any] = {key: value for key, value in clean.resource(pairs) if value}
    if environment:
        detected = OTELResourceDetector().detect().attributes
        kept.update({key: value for key, value in detected.items() if key.startswith(_OF_THE_HOST)})
    return Resource(attributes=key_values(kept)).SerializeToString()


def _clean_status(status: Message) -> None:
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
    """Cleans the spans of one event. Raises ValueError where they have too many values."""

    def __init__(self, common: Mapping[str, Value], given: Collection[str]) -> None:
        self._common = common
        self._owned = common.keys()
        self._encoded = attributes.encode(common)
        self._given = given
        self._attributes = attributes.Cleaner(given)
        self._now = time.time_ns()

    def clean(self, span: Message) -> dict[str, Any]:
        """Leave of a span what the host would say itself, and add what it does say; return its attributes."""
        # What is as it should be is not written again: that costs more than to look.
        if (name := clean.span_name[span.name]) != span.name:
            span.name = name
        if span.kind not in _KINDS:
            span.kind = Span.SPAN_KIND_INTERNAL
        if span.trace_state:
            span.trace_state = _state(span.trace_state) if span.trace_state in self._given else ""
        if span.HasField("status"):
            _clean_status(span.status)
        if span.flags & ~_FLAGS:
            span.flags &= _FLAGS
        self._clean_times(span)
        if span.events:
            self._clean_events(span)
        values = self._attributes.clean(span, self._owned)
        values.update(self._common)
        span.attributes.extend(self._encoded)
        return values

    def _clean_times(self, span: Message) -> None:
        start, told = span.start_time_unix_nano, span.end_time_unix_nano
        if (end := self._moment(told)) != told:
            span.end_time_unix_nano = end
        if not 0 < start <= end:
            span.start_time_unix_nano = end

    def _moment(self, told: int) -> int:
        """Return nanoseconds since the epoch that a backend takes."""
        return min(told or self._now, self._now + DAY_NS)

    def _clean_events(self, span: Message) -> None:
        self._attributes.count(len(span.events))
        if (cut := len(span.events) - clean.MAX_EVENTS) > 0:
            span.dropped_events_count = min(span.dropped_events_count + cut, _MAX_COUNT)
            del span.events[clean.MAX_EVENTS :]
        for event in span.events:
            event.name = clean.name(event.name)
            event.time_unix_nano = self._moment(event.time_unix_nano)
            self._attributes.clean(event)
