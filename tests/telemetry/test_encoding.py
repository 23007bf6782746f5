"""OTLP messages are decoded as OpenTelemetry's own classes do it, filtered, split and merged."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from agent_runner.contract.otlp_messages import readable
from host_client.telemetry.otlp import by_trace, halves, merged, select, spans_of
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


def encoded(spans: list[ReadableSpan]) -> bytes:
    return encode_spans(spans).SerializeToString()


def test_what_is_decoded_encodes_to_the_same() -> None:
    again = {number(made): made for made in readable(encoded(SPANS))}
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
    assert len(readable(both)) == 5


@pytest.mark.parametrize("count", [2, 3, 7])
def test_halves_have_all_spans_between_them(count: int) -> None:
    first, second = halves(encoded(SPANS[:count]))
    assert {first.spans, second.spans} == {min(count, 6) // 2, (min(count, 6) + 1) // 2}
    assert (len(ids_of(first.body)), len(ids_of(second.body))) == (first.spans, second.spans)
    whole = {made.to_json() for made in readable(encoded(SPANS[:count]))}
    assert {made.to_json() for made in (*readable(first.body), *readable(second.body))} == whole


def test_what_is_no_request_is_told() -> None:
    with pytest.raises(DecodeError):
        halves(b"nonsense")
    with pytest.raises(DecodeError):
        readable(b"nonsense")


def test_the_spans_of_a_mask_are_selected_and_no_empty_resource_is_left() -> None:
    request = encode_spans(SPANS)
    wanted = {2, 5}
    selected = select(request, [int.from_bytes(span.span_id, "big") in wanted for span in spans_of(request)])
    assert selected == encode_spans([each for each in SPANS if number(each) in wanted])
    assert select(request, [False] * len(SPANS)) == ExportTraceServiceRequest()


def test_spans_are_parted_by_trace() -> None:
    body = batch(2).body + batch(3, trace=2).body
    parts = by_trace(ExportTraceServiceRequest.FromString(body))
    assert {trace[-1]: len(list(spans_of(part))) for trace, part in parts.items()} == {"1": 2, "2": 3}


def test_requests_are_merged_as_opentelemetry_encodes_all_their_spans() -> None:
    assert merged([encode_spans([each]) for each in SPANS]) == encode_spans(SPANS)
