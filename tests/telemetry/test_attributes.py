"""Attributes are read and cleaned as bytes, of which most come again and again: nothing is another than it would be."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from host_client.telemetry.relay import attributes
from host_client.telemetry.relay.shallow import Span

SECRET = "ada@example.org"


def text(name: str, value: str) -> bytes:
    return KeyValue(key=name, value=AnyValue(string_value=value)).SerializeToString()


PIECES = st.sampled_from(
    [b"\x0a", b"\x12", b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"\x80", b"a", b"\xff", b"\x18"]
)


@given(st.lists(PIECES, max_size=12).map(b"".join))
@example(b"\x0a\x00\x12\x02\x0a\x00")
@example(text("k", "v") + b"\x12\x00")
@example(b"\x0a\x01\xff\x12\x02\x0a\x00")
@example(b"\x0a\x01k\x12\x03\x0a\x01\xff")
def test_bytes_are_read_as_a_message_of_them_would_be(encoded: bytes) -> None:
    try:
        pair = KeyValue.FromString(encoded)
    except DecodeError:
        with pytest.raises(DecodeError):
            attributes.read(encoded)
    else:
        kind = pair.value.WhichOneof("value")
        value = (
            getattr(pair.value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else None
        )
        assert attributes.read(encoded) == (pair.key, value)


@pytest.mark.parametrize("size", [0, 1, 117, 118, 119, 120, 121, 122, 127, 128, 129, 300])
def test_a_text_of_any_length_is_read(size: int) -> None:
    said = "é" * (size // 2) + "x" * (size % 2)
    assert attributes.read(text("k", said)) == ("k", said)


def cleaned(*encoded: bytes, given: set[str] | None = None) -> tuple[dict[str, Any], list[bytes]]:
    """Return what is left, as values and as bytes."""
    span = Span(attributes=encoded)
    return attributes.Cleaner(given or set()).clean(span, frozenset({"owned"})), list(span.attributes)


def test_values_that_python_takes_for_one_are_three() -> None:
    values = (1, True, 1.0, "1")
    encoded = [attributes.encode({"a": value}) for value in values]
    assert [attributes.read(each) for (each,) in encoded] == [("a", value) for value in values]
    assert len({each for (each,) in encoded}) == 4


def test_what_was_seen_before_is_cleaned_as_at_first() -> None:
    items = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="a")]))
    sent = [
        text("plain", "as it is"),
        KeyValue(key="list", value=items).SerializeToString(),
        KeyValue(key="number", value=AnyValue(double_value=0.5)).SerializeToString(),
    ]
    unwanted = [text("user.id", "mallory"), text("owned", "x"), text("", "nameless"), KeyValue().SerializeToString()]
    changed = [text("mail", SECRET), text("two\nlines", "a\r\nb")]
    once = cleaned(*unwanted, *sent, *changed)
    values = {"plain": "as it is", "list": ("a",), "number": 0.5, "mail": "[redacted]", "two lines": "a b"}
    assert once == (values, [*sent, text("mail", "[redacted]"), text("two lines", "a b")])
    assert cleaned(*unwanted, *sent, *changed) == once
    assert cleaned(*sent) == ({name: values[name] for name in ("plain", "list", "number")}, sent)


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("of", [Span, Span.Event], ids=["span", "event"])
def test_however_many_of_the_hosts_attributes_are_sent_none_is_left(of: Any, number: int) -> None:
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
    for _ in range(2):
        message = of(attributes=[*forged, text("a", "b")])
        assert attributes.Cleaner(()).clean(message, frozenset()) == {"a": "b"}
        assert list(message.attributes) == [text("a", "b")]


@pytest.mark.parametrize("unwanted", [text("", "nameless"), KeyValue().SerializeToString(), text("user.id", "x")])
def test_one_attribute_that_no_sandbox_may_send_is_taken_out(unwanted: bytes) -> None:
    for _ in range(2):
        assert cleaned(text("a", "b"), unwanted, text("c", "d")) == (
            {"a": "b", "c": "d"},
            [text("a", "b"), text("c", "d")],
        )


def test_items_of_lists_count_also_where_the_list_was_seen_before() -> None:
    items = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)] * 20))
    short = KeyValue(key="k", value=items).SerializeToString()
    span, cleaner = Span(attributes=[short]), attributes.Cleaner(())
    with pytest.raises(ValueError, match="more than"):
        for _ in range(attributes.MAX_VALUES // 20):
            cleaner.clean(span, frozenset())


def test_of_two_long_texts_of_a_name_the_last_counts() -> None:
    first, last = text("k", "a" * 5000), text("k", "b" * 1000)
    for _ in range(2):
        assert cleaned(text("x", "y"), first, last) == ({"x": "y", "k": "b" * 1000}, [text("x", "y"), last])


def test_a_list_is_read_as_none_whoever_cleaned_it_before() -> None:
    items = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="a")]))
    sent = KeyValue(key="a list", value=items).SerializeToString()
    assert cleaned(sent) == ({"a list": ("a",)}, [sent])
    assert attributes.read(sent) == ("a list", None)


def test_what_is_cut_is_not_looked_at() -> None:
    cleaner = attributes.Cleaner(())
    span = Span(attributes=[b"no attribute", *[text(f"k{number}", "") for number in range(128)]])
    assert len(cleaner.clean(span, frozenset())) == 128
    assert span.dropped_attributes_count == 1


def test_a_text_that_one_session_was_given_is_redacted_in_another() -> None:
    mail = text("mail", SECRET)
    for _ in range(2):
        assert cleaned(mail, given={SECRET}) == ({"mail": SECRET}, [mail])
        assert cleaned(mail) == ({"mail": "[redacted]"}, [text("mail", "[redacted]")])


def test_an_attribute_of_fields_that_otlp_does_not_have_loses_them() -> None:
    odd = text("k", "v") + b"\xfa\x3f\x03abc"
    for _ in range(2):
        assert cleaned(odd) == ({"k": "v"}, [text("k", "v")])


def test_bytes_that_are_no_attribute_are_refused() -> None:
    for encoded in (b"\x0a\x05k", b"\x0a\x01\xff\x12\x02\x0a\x00", b"\x0a\x01k\x12\x03\x0a\x01\xff"):
        with pytest.raises(ValueError, match="no OTLP"):
            cleaned(text("k", "v"), encoded)
