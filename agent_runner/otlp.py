"""Spans of ours as bytes of OTLP, written by hand: importing protobuf's messages costs a run as much as all its spans.

Field numbers are those of opentelemetry-proto's ``trace_service.proto``, ``trace.proto``, ``resource.proto`` and
``common.proto``; the wire format is protobuf's. The tests compare it with what OpenTelemetry's own encoder gives. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import repeat
from struct import Struct
from typing import Any, Protocol

from . import __version__
from .genai import CONTENT
from .spans import Span, SpanEvent, Value

SCOPE = "sandspan.agent_runner"
_KINDS = {"internal": b"\x30\x01", "client": b"\x30\x03"}
"""Field 6 of a span; OTLP counts kinds from 1, with 0 for none given."""

_IS_LOCAL, _IS_REMOTE = (b"\x85\x01" + flags.to_bytes(4, "little") for flags in (0x100, 0x300))
"""Field 16 of a span: whether its parent is said to be remote."""

_UNSET = b"\x7a\x00"
"""Field 15 of a span: a status without a code."""

_SHORT = 0x7E
"""A text of fewer bytes has a size of one byte, and so has the value that it is."""

_LONG = 8192
"""Bytes of a span's attributes that are not kept: one of them would fill the memory for what repeats."""

_TIMES = Struct("<BQBQ").pack
_DOUBLE = Struct("<Bd").pack
_TIME = Struct("<BQ").pack


class Resource(Protocol):
    """OpenTelemetry's, or the one of `agent_runner.resource`."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What it says of the process."""
        ...

    @property
    def schema_url(self) -> str:
        """The schema of their names, if any."""
        ...


def encode(spans: Sequence[Span], of: Resource) -> bytes:
    """Return a serialized OTLP ``ExportTraceServiceRequest``.

    It is called on the agent's event loop. Most attributes of a run repeat on every span, and are kept as bytes; those
    of spans with content, which may be long, are not.
    """
    resource = _sized(1, _attributes(1, of.attributes))
    scope = _sized(1, _text(1, SCOPE) + _text(2, __version__))
    body = scope + b"".join([_sized(2, _span(span)) for span in spans])
    schema = _text(3, of.schema_url) if of.schema_url else b""
    return _sized(1, resource + _sized(2, body) + schema)


def _span(span: Span) -> bytes:
    return b"".join(
        [
            b"\x0a\x10" + bytes.fromhex(span.trace_id),
            b"\x12\x08" + bytes.fromhex(span.span_id),
            _text(3, span.tracestate) if span.tracestate else b"",
            b"\x22\x08" + bytes.fromhex(span.parent_span_id) if span.parent_span_id else b"",
            _name(span.name),
            _KINDS[span.kind],
            _TIMES(0x39, span.start, 0x41, span.end or 0),
            _attributes(9, span.attributes),
            *[_sized(11, _event(event)) for event in span.events],
            _UNSET if span.error_type is None else _failed(span.error_message or span.error_type),
            _IS_REMOTE if span.parent_is_remote else _IS_LOCAL,
        ]
    )


def _event(event: SpanEvent) -> bytes:
    return _TIME(0x09, event.time) + _text(2, event.name) + _attributes(3, event.attributes)


def _failed(message: str) -> bytes:
    return _sized(15, _text(2, message) + b"\x18\x02")


def _attributes(number: int, of: Mapping[str, Any]) -> bytes:
    encode = _repeated if CONTENT.isdisjoint(of) else _attribute
    encoded = b"".join(map(encode, repeat(number), of, of.values()))
    if encode is _repeated and len(encoded) > _LONG:
        _repeated.cache_clear()
    return encoded


def _attribute(number: int, key: str, value: Value) -> bytes:
    if isinstance(value, str) and len(text := value.encode()) < _SHORT:
        encoded = bytes((0x12, len(text) + 2, 0x0A, len(text))) + text  # the same as below, in one step
    else:
        encoded = _sized(2, _any_value(value))
    return _sized(number, _key(key) + encoded)


_repeated = lru_cache(512, typed=True)(_attribute)  # typed: 1, 1.0 and True are three values here


def _any_value(value: Value) -> bytes:
    match value:
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case str():
            return _text(1, value)
        case int():
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"an attribute of {value}, which OTLP does not hold")
            return b"\x18" + _varint(value % 2**64)
        case float():
            return _DOUBLE(0x21, value)
        case _:
            return _sized(5, b"".join(_sized(1, _any_value(item)) for item in value))


def _text(number: int, text: str) -> bytes:
    return _sized(number, text.encode())


_key = lru_cache(256)(partial(_text, 1))
_name = lru_cache(64)(partial(_text, 5))
"""Of an attribute, and of a span."""


def _sized(number: int, body: bytes) -> bytes:
    """Return a field that is as long as it says."""
    size = len(body)
    return (bytes((number << 3 | 2, size)) if size < 0x80 else bytes((number << 3 | 2,)) + _varint(size)) + body


def _varint(number: int) -> bytes:
    """Return a number in sevens of bits, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
