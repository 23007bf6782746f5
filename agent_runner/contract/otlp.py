"""Encode finished spans as OTLP. Pure.

The encoder is written by hand because importing protobuf's message classes takes as long as encoding all spans of a run
(`benchmarks/startup.py`). Field numbers are those of opentelemetry-proto's ``trace_service.proto``, ``trace.proto``,
``resource.proto`` and ``common.proto``. The tests compare the result with OpenTelemetry's own encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import pack
from typing import Any, Protocol

from . import __version__
from .spans import Span, SpanEvent, Value

SCOPE = "sandspan.agent_runner"
"""The name of the scope of all spans that the runner and the host make themselves."""

MAX_CACHED_LENGTH = 128
"""Longer names and values are not cached: prompts must not stay in memory, and they hardly ever repeat."""

_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types: the lowest three bits of the tag before each field, whose other bits are the field number."""

_SIZED_TAGS = {field: bytes((field << 3 | _SIZED,)) for field in range(1, 16)}
_KINDS = {"internal": 1, "client": 3}
_STATUS_ERROR = 2
_PARENT_IS_LOCAL, _PARENT_IS_REMOTE = 0x100, 0x300
"""Flags of a span: bit 8 says that bit 9 is set on purpose, bit 9 that the parent is in another process."""


class Resource(Protocol):
    """The fields of a resource that are encoded, as in OpenTelemetry's class and in `agent_runner._resource`."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return the attributes that describe the process."""
        ...

    @property
    def schema_url(self) -> str:
        """Return the URL of the schema that the attribute names follow, or an empty text."""
        ...


def encode(spans: Sequence[Span], of: Resource) -> bytes:
    """Return finished spans of one process as a serialized ``ExportTraceServiceRequest``."""
    scope = _text(1, SCOPE) + _text(2, __version__)
    scope_spans = _message(1, scope) + b"".join([_message(2, _span(span)) for span in spans])
    resource = _message(1, _attributes(1, of.attributes))
    schema_url = _text(3, of.schema_url) if of.schema_url else b""
    return _message(1, resource + _message(2, scope_spans) + schema_url)


def _span(span: Span) -> bytes:
    fields = [
        _message(1, bytes.fromhex(span.trace_id)),
        _message(2, bytes.fromhex(span.span_id)),
        _text(3, span.tracestate) if span.tracestate else b"",
        _message(4, bytes.fromhex(span.parent_span_id)) if span.parent_span_id else b"",
        _text(5, span.name),
        _varint_field(6, _KINDS[span.kind]),
        pack("<BQ", 7 << 3 | _FIXED64, span.start),
        pack("<BQ", 8 << 3 | _FIXED64, span.end or 0),
        _attributes(9, span.attributes),
        *[_message(11, _event(event)) for event in span.events],
        _message(15, _status(span)),
        _varint(16 << 3 | _FIXED32) + pack("<I", _PARENT_IS_REMOTE if span.parent_is_remote else _PARENT_IS_LOCAL),
    ]
    return b"".join(fields)


def _event(event: SpanEvent) -> bytes:
    return pack("<BQ", 1 << 3 | _FIXED64, event.time) + _text(2, event.name) + _attributes(3, event.attributes)


def _status(span: Span) -> bytes:
    if span.error_type is None:
        return b""
    return _text(2, span.error_message or span.error_type) + _varint_field(3, _STATUS_ERROR)


def _attributes(field: int, of: Mapping[str, Value]) -> bytes:
    return b"".join([_attribute(field, name, value) for name, value in of.items()])


def _attribute(field: int, name: str, value: Value) -> bytes:
    # Most attributes repeat on every span of a run. Without the cache the time per tool call doubles
    # (`benchmarks/per_call.py`).
    is_short = len(name) <= MAX_CACHED_LENGTH and (not isinstance(value, str) or len(value) <= MAX_CACHED_LENGTH)
    if is_short and isinstance(value, str | int):
        return _cached_attribute(field, name, value)
    return _new_attribute(field, name, value)


def _new_attribute(field: int, name: str, value: Value) -> bytes:
    return _message(field, _text(1, name) + _message(2, _any_value(value)))


# Typed, because 1 and True are equal, and different values in OTLP.
_cached_attribute = lru_cache(2048, typed=True)(_new_attribute)


def _any_value(value: Value) -> bytes:
    match value:
        case str():
            return _text(1, value)
        case bool():
            return _varint_field(2, value)
        case int():
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"the attribute value {value} does not fit into OTLP's 64 bits")
            return _varint_field(3, value % 2**64)
        case float():
            return pack("<Bd", 4 << 3 | _FIXED64, value)
        case _:
            return _message(5, b"".join([_message(1, _any_value(item)) for item in value]))


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, body: bytes) -> bytes:
    return _SIZED_TAGS[field] + _varint(len(body)) + body


def _varint_field(field: int, number: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(number)


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first; the high bit says that another group follows."""
    if number <= 0x7F:
        return bytes((number,))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
