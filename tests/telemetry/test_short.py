"""What is read off the bytes of an attribute is what protobuf says of them, or nothing."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from host_client.telemetry.relay import _short as short

NUMBERS = [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**28 - 1]


KINDS: dict[type, Literal["string_value", "int_value", "double_value"]] = {
    str: "string_value",
    int: "int_value",
    float: "double_value",
}


def encoded(value: str | float) -> bytes:
    said: dict[str, Any] = {KINDS[type(value)]: value}
    return KeyValue(key="key", value=AnyValue(**said)).SerializeToString()


@pytest.mark.parametrize("value", [*NUMBERS, 0.0, -1.5, float("inf"), "", "x", "é", "\x00", "x" * (127 - 9)])
def test_what_is_short_is_read(value: str | float) -> None:
    for _ in range(2):
        read = short.read(encoded(value))
        assert read is not None
        assert read == ("key", value)
        assert type(read[1]) is type(value)


@pytest.mark.parametrize("value", [2**28, 2**63 - 1, -1, "x" * (128 - 9), "x" * 300, "é" * 100])
def test_what_is_longer_is_not(value: str | float) -> None:
    assert short.read(encoded(value)) is None


PIECES = [b"\x0a", b"\x12", b"\x18", b"\x21", b"\x10", b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x06"]
OTHERS = [b"\x00", b"\x7f", b"\x80", b"\xff", b"a", "é".encode(), bytes(8)]


@given(st.lists(st.sampled_from(PIECES + OTHERS), max_size=14).map(b"".join))
@example(b"\x0a\x01k\x12\x04\x0a\x02\xff\xfe")
@example(b"\x0a\x01\xff\x12\x03\x0a\x01v")
@example(b"\x0a\x01k\x12\x03\x18\x80\x00")
@example(b"\x0a\x01k\x12\x03\x18\x01\x01")
@example(b"\x0a\x01k\x12\x03\x18\x81\x81")
def test_of_any_bytes_protobuf_would_say_the_same(said: bytes) -> None:
    if (read := short.read(said)) is not None:
        check(said, read)


@given(
    st.sampled_from([*NUMBERS, -1, 1.5, "", "text", "é"]).map(encoded),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=2),
    st.integers(0, 40),
)
def test_of_bytes_that_were_changed_too(said: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    changed = bytearray(said)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    changed = changed[: max(1, len(changed) - cut)] if cut < 4 else changed
    if (read := short.read(bytes(changed))) is not None:
        check(bytes(changed), read)


def check(said: bytes, read: tuple[str, str | float]) -> None:
    """Protobuf reads the same, and writes it in the same bytes."""
    try:
        pair = KeyValue.FromString(said)
    except DecodeError:
        pytest.fail(f"{said!r} is no attribute, and was read as {read}")
    name, value = read
    kind = KINDS[type(value)]
    assert pair.value.WhichOneof("value") == kind
    assert pair.key == name and repr(getattr(pair.value, kind)) == repr(value)
    assert pair.SerializeToString() == said
