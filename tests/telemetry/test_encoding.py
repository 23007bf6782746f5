"""Spans as bytes and back: what OpenTelemetry's own encoder gives, whatever the spans."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from host_client.telemetry.otlp import decode, encode, halves
from tests.telemetry.receiver import batch, ids_of

HOST, SANDBOX = Resource({"service.name": "host"}, "https://schema"), Resource({"service.name": "runner", "n": 1})
ONE, TWO = InstrumentationScope("one", "1", "https://scope", {"a": True}), InstrumentationScope("two")
STATE = TraceState([("vendor", "a"), ("other", "b")])


def context(span_id: int, *, is_remote: bool = False, state: TraceState | None = None) -> SpanContext:
    return SpanContext(2**127 + 5, span_id, is_remote, TraceFlags(1), state)


def span(span_id: int, resource: Resource, scope: InstrumentationScope | None, **about: object) -> ReadableSpan:
    given: dict[str, object] = {"start_time": 1, "end_time": 2, "attributes": {}, **about}
    return ReadableSpan("é", context(span_id), resource=resource, instrumentation_scope=scope, **given)  # pyright: ignore[reportArgumentType]


SPANS = [
    span(1, HOST, ONE, attributes={"s": "x" * 500, "i": -1, "f": 1.0, "b": True, "one": 1, "t": ("a", "b")}),
    span(2, SANDBOX, ONE, parent=context(1, is_remote=True), kind=SpanKind.CLIENT, status=Status(StatusCode.OK)),
    span(3, HOST, TWO, parent=context(1), status=Status(StatusCode.ERROR, "failed")),
    span(4, HOST, ONE, events=[Event("retry", {"n": 2}, 5), Event("done", {}, 6)]),
    span(5, SANDBOX, TWO, links=[Link(context(9, is_remote=True), {"why": "caller"})]),
    ReadableSpan("state", context(6, state=STATE), None, HOST, instrumentation_scope=ONE, start_time=3, end_time=4),
]


def test_spans_are_encoded_as_opentelemetry_encodes_them() -> None:
    for _ in range(2):  # the second time from the cache
        made = encode(SPANS)
        assert made.spans == len(SPANS)
        assert ExportTraceServiceRequest.FromString(made.body) == encode_spans(SPANS)


def test_what_is_decoded_encodes_to_the_same() -> None:
    again = {number(made): made for made in decode(encode(SPANS).body)}
    assert len(again) == len(SPANS)
    for before in SPANS:
        assert encode_spans([again[number(before)]]) == encode_spans([before])


def number(made: ReadableSpan) -> int:
    about = made.get_span_context()
    assert about is not None
    return about.span_id


def test_requests_in_a_row_are_one_request() -> None:
    both = batch(2).body + batch(3, trace=2).body
    assert ids_of(both) == ids_of(batch(2).body, batch(3, trace=2).body)
    assert len(decode(both)) == 5


@pytest.mark.parametrize("count", [2, 3, 7])
def test_halves_have_all_spans_between_them(count: int) -> None:
    first, second = halves(encode(SPANS[:count]).body)
    assert {first.spans, second.spans} == {min(count, 6) // 2, (min(count, 6) + 1) // 2}
    assert (len(ids_of(first.body)), len(ids_of(second.body))) == (first.spans, second.spans)
    whole = {made.to_json() for made in decode(encode(SPANS[:count]).body)}
    assert {made.to_json() for made in (*decode(first.body), *decode(second.body))} == whole


def test_what_is_no_request_is_told() -> None:
    with pytest.raises(DecodeError):
        halves(b"nonsense")
    with pytest.raises(DecodeError):
        decode(b"nonsense")
