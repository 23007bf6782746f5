"""The attributes of a sandbox's spans are filtered, cleaned, made unique and limited in number."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from host_client.telemetry.otlp import key_values, spans_of, values_of
from host_client.telemetry.relay import decoding

TRACE = b"T" * 16
SECRET = "ada@example.org"


def text(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))


def body_of(span: Span) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.append(span)
    return request.SerializeToString()


def decoded(*bodies: bytes, given: set[str] | None = None, common: dict[str, Any] | None = None) -> Span:
    """Return the host's version of the only span in a request, whose body may come in parts."""
    event = base64.b64encode(b"".join(bodies)).decode()
    ids = frozenset({TRACE.hex()})
    (span,) = spans_of(decoding.decode(event, trace_ids=ids, common=common or {}, given=given or ()))
    return span


def cleaned(*pairs: KeyValue, given: set[str] | None = None) -> list[KeyValue]:
    """Return the host's version of attributes after checking that it is the same on a span and an event."""
    event = Span.Event(name="e", time_unix_nano=1, attributes=pairs)
    span = decoded(body_of(Span(trace_id=TRACE, span_id=b"S" * 8, attributes=pairs, events=[event])), given=given)
    assert list(span.attributes) == list(span.events[0].attributes)
    return list(span.attributes)


PIECES = st.sampled_from(
    [b"\x0a", b"\x12", b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"\x80", b"a", b"\xff", b"\x18"]
)


@given(st.lists(PIECES, max_size=12).map(b"".join))
@example(b"\x0a\x00\x12\x02\x0a\x00")
@example(text("k", "v").SerializeToString() + b"\x12\x00")
@example(b"\x0a\x01\xff\x12\x02\x0a\x00")
@example(b"\x0a\x01k\x12\x03\x0a\x01\xff")
@example(b"\x0a\x05k")
def test_any_bytes_in_the_place_of_an_attribute_are_one_that_is_cleaned_or_refused(encoded: bytes) -> None:
    field = b"\x4a" + bytes((len(encoded),)) + encoded  # field 9 of a span: attributes
    span = Span(trace_id=TRACE, span_id=b"S" * 8).SerializeToString() + field
    scope = b"\x12" + bytes((len(span),)) + span
    resource = b"\x12" + bytes((len(scope),)) + scope
    event = base64.b64encode(b"\x0a" + bytes((len(resource),)) + resource).decode()
    try:
        request = decoding.decode(event, trace_ids=frozenset({TRACE.hex()}), common={})
    except ValueError as error:
        assert "cannot be decoded as OTLP" in str(error)
    else:
        (span,) = spans_of(request)
        assert len(span.attributes) <= 1
        assert all(pair.key and pair.value.WhichOneof("value") for pair in span.attributes)


@pytest.mark.parametrize("size", [0, 1, 117, 118, 119, 120, 121, 122, 127, 128, 129, 300])
def test_a_text_of_any_length_is_read(size: int) -> None:
    said = "é" * (size // 2) + "x" * (size % 2)
    assert cleaned(text("k", said)) == [text("k", said)]


def test_values_that_python_takes_for_one_are_three() -> None:
    values: tuple[Any, ...] = (1, True, 1.0, "1")
    sent = key_values({f"k{number}": value for number, value in enumerate(values)})
    kept = values_of(cleaned(*sent))
    assert [(value, type(value)) for value in kept.values()] == [(value, type(value)) for value in values]


def test_what_was_seen_before_is_cleaned_as_at_first() -> None:
    items = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="a")]))
    sent = [
        text("plain", "as it is"),
        KeyValue(key="list", value=items),
        KeyValue(key="number", value=AnyValue(double_value=0.5)),
    ]
    unwanted = [text("user.id", "mallory"), text("", "nameless"), KeyValue()]
    changed = [text("mail", SECRET), text("two\nlines", "a\r\nb")]
    for _ in range(2):
        assert cleaned(*unwanted, *sent, *changed) == [*sent, text("mail", "[redacted]"), text("two lines", "a b")]
    assert cleaned(*sent) == sent


@pytest.mark.parametrize("number", range(9))
def test_however_many_of_the_hosts_attributes_are_sent_none_is_left(number: int) -> None:
    names = (
        "langfuse.user.id",
        "langfuse.tags",
        "gen_ai.usage.cost",
        "user.tier",
        "tenant.id",
        "user.id",
        "session.id",
    )
    forged = [text(name, "mallory") for name in (*names, "langfuse.a", "langfuse.b")][:number]
    assert cleaned(*forged, text("a", "b")) == [text("a", "b")]


def test_an_attribute_that_the_host_puts_on_every_span_is_the_hosts() -> None:
    span = Span(trace_id=TRACE, span_id=b"S" * 8, attributes=[text("region", "theirs"), text("a", "b")])
    made = decoded(body_of(span), common={"region": "eu"})
    assert list(made.attributes) == [text("a", "b"), text("region", "eu")]


@pytest.mark.parametrize("unwanted", [text("", "nameless"), KeyValue(), text("user.id", "x")])
def test_one_attribute_that_no_sandbox_may_send_is_taken_out(unwanted: KeyValue) -> None:
    assert cleaned(text("a", "b"), unwanted, text("c", "d")) == [text("a", "b"), text("c", "d")]


def test_items_of_lists_count_too() -> None:
    items = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)] * 20))
    many = [KeyValue(key=f"k{number}", value=items) for number in range(100)]
    number = decoding.MAX_VALUES // (20 * 100)
    bodies = [body_of(Span(trace_id=TRACE, span_id=b"S" * 8, attributes=many))] * number
    with pytest.raises(ValueError, match="more than"):
        decoded(*bodies)


def test_of_two_long_texts_of_a_name_the_last_counts() -> None:
    first, last = text("k", "a" * 5000), text("k", "b" * 1000)
    assert cleaned(text("x", "y"), first, last) == [text("x", "y"), last]


def test_of_too_many_the_last_stay_and_the_others_are_counted() -> None:
    many = [text(f"k{number}", "") for number in range(129)]
    span = decoded(body_of(Span(trace_id=TRACE, span_id=b"S" * 8, attributes=many)))
    assert (list(span.attributes), span.dropped_attributes_count) == (many[1:], 1)


def test_a_text_that_one_session_was_given_is_redacted_in_another() -> None:
    mail = text("mail", SECRET)
    for _ in range(2):
        assert cleaned(mail, given={SECRET}) == [mail]
        assert cleaned(mail) == [text("mail", "[redacted]")]


def test_an_attribute_of_fields_that_otlp_does_not_have_loses_them() -> None:
    odd = KeyValue.FromString(text("k", "v").SerializeToString() + b"\xfa\x3f\x03abc")
    number = KeyValue(key="n", value=AnyValue.FromString(b"\x18\x07\xfa\x3f\x03abc"))
    items = [AnyValue.FromString(b"\x18\x07\xfa\x3f\x03abc")]
    listed = KeyValue(key="l", value=AnyValue(array_value=ArrayValue(values=items)))
    kept = cleaned(odd, number, listed)
    assert b"abc" not in b"".join(pair.SerializeToString() for pair in kept)
    assert values_of(kept) == {"k": "v", "n": 7, "l": (7,)}
