"""Spans of ours as bytes of OTLP, written by hand: importing protobuf's messages costs a run as much as all its spans.

Field numbers are those of opentelemetry-proto's ``trace_service.proto``, ``trace.proto``, ``resource.proto`` and
``common.proto``; the wire format is protobuf's. The tests compare it with what OpenTelemetry's own encoder gives. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from struct import Struct
from typing import Any, Protocol

from . import __version__
from .memory import SHORT, Memory, Remembered
from .spans import Span, SpanEvent, Value

SCOPE = "sandspan.agent_runner"
_KINDS = {"internal": b"\x30\x01", "client": b"\x30\x03"}
"""Field 6 of a span; OTLP counts kinds from 1, with 0 for none given."""

_IS_LOCAL, _IS_REMOTE = (b"\x85\x01" + flags.to_bytes(4, "little") for flags in (0x100, 0x300))
"""Field 16 of a span: whether its parent is said to be remote."""

_UNSET = b"\x7a\x00"
"""Field 15 of a span: a status without a code."""

_1, _2, _3, _5, _9, _11, _15 = (bytes((number << 3 | 2,)) for number in (1, 2, 3, 5, 9, 11, 15))
"""Tags of fields of these numbers that begin with their size."""

_MOST_SIZES = 2048

_TIMES = Struct("<BQBQ").pack
_DOUBLE = Struct("<Bd").pack
_TIME = Struct("<BQ").pack


class Resource(Protocol):
    """OpenTelemetry's, or the one of `agent_runner._resource`."""

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

    It is called on the agent's event loop. Most attributes of a run repeat on every span, and are kept as bytes.
    """
    resource = _sized(_1, _of_resource.encoded(of.attributes))
    scope = _sized(_1, _text(_1, SCOPE) + _text(_2, __version__))
    body = scope + b"".join([_sized(_2, _span(span)) for span in spans])
    schema = _text(_3, of.schema_url) if of.schema_url else b""
    return _sized(_1, resource + _sized(_2, body) + schema)


def _span(span: Span) -> bytes:
    parent = f"2208{span.parent_span_id}" if span.parent_span_id else ""
    return b"".join(
        [
            bytes.fromhex(f"0a10{span.trace_id}1208{span.span_id}{parent}"),
            _text(_3, span.tracestate) if span.tracestate else b"",
            _name[span.name],
            _KINDS[span.kind],
            _TIMES(0x39, span.start, 0x41, span.end or 0),
            of_span.encoded(span.attributes),
            *[_sized(_11, _event(event)) for event in span.events],
            _UNSET if span.error_type is None else _failed(span.error_message or span.error_type),
            _IS_REMOTE if span.parent_is_remote else _IS_LOCAL,
        ]
    )


def _event(event: SpanEvent) -> bytes:
    return _TIME(0x09, event.time) + _text(_2, event.name) + _of_event.encoded(event.attributes)


def _failed(message: str) -> bytes:
    return _sized(_15, _text(_2, message) + b"\x18\x02")


class _Attributes(Memory[tuple[str, Value, type], bytes]):
    """Attributes in the field of this tag, as bytes; what is short is kept.

    It is kept by its type, too: 1, 1.0 and True are the same to a dict, and three values here.
    """

    def __init__(self, tag: bytes) -> None:
        super().__init__()
        self._tag = tag

    def encoded(self, of: Mapping[str, Value]) -> bytes:
        """Return one field after the other."""
        values = of.values()
        return b"".join(map(self.__getitem__, zip(of, values, map(type, values), strict=True)))

    def __missing__(self, attribute: tuple[str, Value, type]) -> bytes:
        name, value, _ = attribute
        encoded = _sized(self._tag, _key[name] + _sized(_2, _any_value(value)))
        if len(encoded) <= SHORT:
            self.keep(attribute, encoded)
        return encoded


def _any_value(value: Value) -> bytes:
    if isinstance(value, str):
        return _text(_1, value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, float):
        return _DOUBLE(0x21, value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"an attribute of {value}, which OTLP does not hold")
        return b"\x18" + _varint[value % 2**64]
    return _sized(_5, b"".join([_sized(_1, _any_value(item)) for item in value]))


def _text(tag: bytes, text: str) -> bytes:
    return _sized(tag, text.encode())


def _sized(tag: bytes, body: bytes) -> bytes:
    """Return a field that is as long as it says."""
    return tag + _varint[len(body)] + body


class _Varints(dict[int, bytes]):
    """Numbers in sevens of bits, the lowest first; those that most sizes have are kept."""

    def __missing__(self, number: int) -> bytes:
        encoded, left = bytearray(), number
        while left > 0x7F:
            encoded.append(left & 0x7F | 0x80)
            left >>= 7
        encoded.append(left)
        made = bytes(encoded)
        if number < _MOST_SIZES:
            self[number] = made
        return made


_varint = _Varints()
of_span = _Attributes(_9)
_of_resource, _of_event = _Attributes(_1), _Attributes(_3)
_key = Remembered(partial(_text, _1))
_name = Remembered(partial(_text, _5))
"""Of an attribute, and of a span."""
