"""Read and clean the spans that other programs export: limited, on one line, without secrets. Pure.

It takes a tenth of a millisecond a span, so it is done in a thread.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ._asgi import TooLargeError
from .contract.otlp import SCOPE
from .contract.otlp_messages import key_values, refuse_too_many
from .contract.ownership import HOST_SPANS, OF_THE_AGENT_PREFIXES, OF_THE_HOST, OF_THE_HOST_PREFIXES, PROGRAM
from .contract.sanitize import brief, redacted_line
from .contract.spans import MAX_EVENTS, Value

PROTOBUF, JSON = b"application/x-protobuf", b"application/json"

MAX_SPANS_OF_A_REQUEST = 10_000
"""Maximum number of resources, scopes and spans in a request: two bytes can be one."""

MAX_ATTRIBUTES = 128
"""Maximum number of attributes of a span, as in OpenTelemetry's SDK."""

MAX_EVENT_ATTRIBUTES = 16
MAX_ITEMS = 32
"""Maximum numbers of attributes of an event and of items in a list. With these a span has at most 16,000 values."""

MAX_TEXT = 1024
"""Maximum number of characters of a text."""

_NO_ID = bytes(8)
_MAX_CACHED_NAME = 128
_IDS = ("traceId", "spanId", "parentSpanId")

_CLI_SCOPE = "com.anthropic.claude_code.tracing"
_MERGED = frozenset(
    f"claude_code.{name}" for name in ("interaction", "llm_request", "tool", "tool.blocked_on_user", "tool.execution")
)
"""Spans of the CLI that are not passed on, because the run has spans for the same operations."""


class UnreadableError(ValueError):
    """A request cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class ForeignSpan:
    """A span of another program, cleaned, or one of the CLI as it came.

    Spans of one resource or scope share its object.
    """

    span: Span
    resource: Resource
    scope: InstrumentationScope
    cli_session: str = ""
    """The CLI's session id, if the span is one of a CLI for an operation that its runner has a span for."""


def read_spans(body: bytes, encoding: bytes, media_type: bytes, limit: int) -> list[ForeignSpan]:
    """Return the spans in the body of a request; those without a valid id are left out.

    Raise `UnreadableError`, or `TooLargeError` for a body that has more than ``limit`` bytes when decompressed.
    """
    try:
        whole = _decompressed(body, encoding, limit)
        request = ExportTraceServiceRequest.FromString(whole) if media_type == PROTOBUF else _from_json(whole)
        refuse_too_many(request, MAX_SPANS_OF_A_REQUEST)
    except (DecodeError, ParseError, ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise UnreadableError(brief(str(error))) from None
    found: list[ForeignSpan] = []
    for of_resource in request.resource_spans:
        resource = _resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            scope = _scope(of_scope.scope)
            for span in of_scope.spans:
                if len(span.span_id) == len(_NO_ID) and span.span_id != _NO_ID:
                    session = _cli_session(span, scope)
                    found.append(ForeignSpan(span if session else _cleaned(span), resource, scope, session))
    return found


def _decompressed(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Return a body as it was before compression; raise `TooLargeError` if it has more than ``limit`` bytes."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise ValueError(f"content-encoding {encoding.decode('latin-1')!r} is not known")
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either of the two
    whole = decompressor.decompress(body, limit + 1)
    if len(whole) > limit:
        raise TooLargeError
    if not decompressor.eof:
        raise ValueError("the compressed body is not complete")
    return whole


def _from_json(body: bytes) -> ExportTraceServiceRequest:
    """Read OTLP in JSON, which is protobuf's JSON but for ids, which are in hex."""
    data = json.loads(body)
    spans = [
        span
        for of_resource in data.get("resourceSpans") or ()
        for of_scope in of_resource.get("scopeSpans") or ()
        for span in of_scope.get("spans") or ()
    ]
    if len(spans) > MAX_SPANS_OF_A_REQUEST:
        raise ValueError(f"more than {MAX_SPANS_OF_A_REQUEST} spans")
    for span in spans:
        span.pop("links", None)  # they are not passed on
        _convert_ids(span)
    return ParseDict(data, ExportTraceServiceRequest(), ignore_unknown_fields=True)


def _convert_ids(span: dict[str, Any]) -> None:
    for name in _IDS:
        if name in span:
            span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()


# -- spans of the CLI ---------------------------------------------------------------------------------


def _cli_session(span: Span, scope: InstrumentationScope) -> str:
    if scope.name != _CLI_SCOPE or span.name not in _MERGED:
        return ""
    # Not the span's gen_ai.conversation.id, which for a subagent is the id of its task.
    return text_of(span, "session.id")


def text_of(span: Span, attribute: str) -> str:
    """Return the text of a span's attribute, empty if there is none."""
    return next((pair.value.string_value for pair in span.attributes if pair.key == attribute), "")


# -- cleaning -----------------------------------------------------------------------------------------


def _cleaned(span: Span) -> Span:
    """Return a clean copy of a span without its links, its trace state and attributes that only Sandspan may set."""
    copy = Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=b"" if span.parent_span_id == _NO_ID else span.parent_span_id,
        name=_span_name(span.name),
        kind=span.kind,
        flags=span.flags,
        start_time_unix_nano=span.start_time_unix_nano,
        end_time_unix_nano=span.end_time_unix_nano,
        dropped_attributes_count=max(0, len(span.attributes) - MAX_ATTRIBUTES),
        dropped_events_count=max(0, len(span.events) - MAX_EVENTS),
        dropped_links_count=len(span.links),
        status=Status(code=span.status.code, message=brief(span.status.message)),
    )
    for event in span.events[:MAX_EVENTS]:
        clean_event = copy.events.add(name=brief(event.name), time_unix_nano=event.time_unix_nano)
        clean_event.attributes.extend(_attribute(pair) for pair in event.attributes[:MAX_EVENT_ATTRIBUTES])
    copy.attributes.extend(_attribute(pair) for pair in span.attributes[:MAX_ATTRIBUTES] if not _is_owned(pair.key))
    return copy


def set_common(span: Span, common: Mapping[str, Value], withheld: Collection[str]) -> None:
    """Set the attributes of every span of the run, in place of its own of these names; remove the ``withheld`` ones."""
    kept = [pair for pair in span.attributes if pair.key not in common and pair.key not in withheld]
    del span.attributes[:]
    span.attributes.extend(kept)
    span.attributes.extend(key_values(common))


def _span_name(name: str) -> str:
    cleaned = brief(name)
    return f"process {cleaned}" if cleaned in HOST_SPANS else cleaned


def _is_owned(name: str) -> bool:
    return name in OF_THE_HOST or name.startswith((*OF_THE_HOST_PREFIXES, *OF_THE_AGENT_PREFIXES))


def _resource(resource: Resource) -> Resource:
    pairs = {pair.key: pair.value.string_value for pair in resource.attributes if pair.key in PROGRAM}
    return Resource(attributes=key_values({name: brief(value) for name, value in pairs.items()}))


def _scope(scope: InstrumentationScope) -> InstrumentationScope:
    """Return a scope's name and version; the name of the runner's own scope gets a prefix."""
    name = f"process {scope.name}" if scope.name == SCOPE else scope.name
    return InstrumentationScope(name=brief(name), version=brief(scope.version))


def _attribute(pair: KeyValue) -> KeyValue:
    name = _cached_name(pair.key) if len(pair.key) <= _MAX_CACHED_NAME else brief(pair.key)
    return KeyValue(key=name, value=_clean_value(pair.value))


# Most spans of a program have the same names, and searching them for secrets is a third of cleaning a span.
_cached_name = lru_cache(2048)(brief)


def _clean_value(value: AnyValue) -> AnyValue:
    match value.WhichOneof("value"):
        case "string_value":
            return AnyValue(string_value=redacted_line(value.string_value, MAX_TEXT))
        case "array_value":
            items = value.array_value.values[:MAX_ITEMS]
            return AnyValue(array_value=ArrayValue(values=[_clean_item(item) for item in items]))
        case "bool_value" | "int_value" | "double_value":
            return value
        case _:  # a map, bytes or nothing, which not every backend accepts
            return AnyValue(string_value="")


def _clean_item(item: AnyValue) -> AnyValue:
    is_nested = item.WhichOneof("value") in ("array_value", "kvlist_value", "bytes_value", None)
    return AnyValue(string_value="") if is_nested else _clean_value(item)
