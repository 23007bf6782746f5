"""The host reduces a sandbox's spans to the form that its own runner sends."""

from __future__ import annotations

import base64
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent_runner.contract.otlp import SCOPE
from agent_runner.contract.otlp_messages import readable
from host_client.telemetry.otlp import by_trace, ended_spans, spans_of
from host_client.telemetry.relay.decoding import decode

TRACE, OTHER = b"T" * 16, b"O" * 16
IDS = frozenset({TRACE.hex(), OTHER.hex()})


def span(**about: object) -> Span:
    ids = {"trace_id": TRACE, "span_id": b"S" * 8}
    moments = {"start_time_unix_nano": 5, "end_time_unix_nano": 9}
    given: dict[str, object] = {**ids, **moments, "name": "chat m", "kind": 3, **about}
    return Span(**given)  # pyright: ignore[reportArgumentType]


def request(*spans: Span) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    of_resource = made.resource_spans.add(schema_url="https://schema")
    of_scope = of_resource.scope_spans.add(schema_url="https://scope")
    of_scope.scope.name = SCOPE
    of_scope.spans.extend(spans)
    return made


def text(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))


def taken(*spans: Span, common: dict[str, str] | None = None) -> list[Span]:
    """Return the host's version of a sandbox's spans."""
    otlp = base64.b64encode(request(*spans).SerializeToString()).decode()
    return list(spans_of(decode(otlp, trace_ids=IDS, common=common or {}, given={"a=b,c=d"})))


def test_what_a_runner_sends_goes_on_as_it_is() -> None:
    sent = span(
        parent_span_id=b"P" * 8,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        flags=0x300,
        trace_state="a=b,c=d",
        status=Status(code=Status.STATUS_CODE_ERROR, message="failed"),
        attributes=[
            text("a", "b"),
            KeyValue(key="list", value=AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))),
            KeyValue(key="yes", value=AnyValue(bool_value=False)),
        ],
        events=[Span.Event(name="retry", time_unix_nano=7, attributes=[text("n", "1")])],
    )
    assert taken(sent) == [sent]


def test_whom_a_span_is_for_and_what_it_cost_is_what_the_host_says() -> None:
    forged = [text(name, "mallory") for name in ("user.id", "tenant.id", "langfuse.user.id", "gen_ai.usage.cost")]
    (made,) = taken(span(attributes=[*forged, text("a", "b"), text("region", "theirs")]), common={"region": "eu"})
    assert list(made.attributes) == [text("a", "b"), text("region", "eu")]


def test_what_no_runner_sends_is_taken_out() -> None:
    nested = AnyValue(array_value=ArrayValue(values=[AnyValue(array_value=ArrayValue())]))
    odd = [
        KeyValue(key="map", value=AnyValue(kvlist_value=KeyValueList(values=[text("user.id", "x")]))),
        KeyValue(key="bytes", value=AnyValue(bytes_value=b"x")),
        KeyValue(key="nothing"),
        KeyValue(key="nested", value=nested),
    ]
    sent = span(
        kind=77,
        flags=0xFFFFFFFF,
        trace_state="=,not a state",
        status=Status(code=2**31 - 1, message="x"),  # pyright: ignore[reportArgumentType]
        attributes=odd,
        links=[Span.Link(trace_id=OTHER, span_id=b"L" * 8)],
        events=[Span.Event(name="e", time_unix_nano=7, attributes=[text("langfuse.x", "y"), odd[0]])],
    )
    sent.MergeFromString(b"\xfa\x3f\x03abc")  # a field unknown to OTLP
    (made,) = taken(sent)
    empty = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="")]))
    assert made == span(
        kind=1,
        flags=0x300,
        status=Status(),
        attributes=[text("map", ""), text("bytes", ""), text("nothing", ""), KeyValue(key="nested", value=empty)],
        events=[Span.Event(name="e", time_unix_nano=7, attributes=[text("map", "")])],
    )


def test_of_two_attributes_of_a_name_the_last_counts() -> None:
    (made,) = taken(span(attributes=[text("a", "1"), text("b", "2"), text("a", "3")]))
    assert list(made.attributes) == [text("b", "2"), text("a", "3")]


@pytest.mark.parametrize(
    "about",
    [
        {"trace_id": b"X" * 16},
        {"trace_id": b"T"},
        {"span_id": b"S"},
        {"span_id": bytes(8)},
        {"parent_span_id": b"P" * 9},
        {"parent_span_id": bytes(8)},
    ],
    ids=str,
)
def test_ids_that_are_not_of_this_session_or_none_at_all_are_refused(about: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="not this session's"):
        taken(span(), span(**about))


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x00" * 10_001,
        b"\x0a\x02\x12\x00" * 5_001,
        request(*[span()] * 10_001).SerializeToString(),
        request(*[span(events=[Span.Event()] * 128)] * 800).SerializeToString(),
        request(*[span(attributes=[KeyValue(key="user.id")] * 128)] * 800).SerializeToString(),
    ],
    ids=["resources", "scopes", "spans", "events", "attributes"],
)
def test_more_than_a_runner_ever_sends_at_a_time_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="more than"):
        decode(base64.b64encode(body).decode(), trace_ids=IDS, common={})


def test_a_resource_or_scope_without_spans_is_taken_out_before_it_is_looked_at() -> None:
    sent = request(span())
    sent.resource_spans[0].scope_spans.add().scope.name = "empty"
    sent.MergeFromString(b"\x0a\x00" * 9_000 + b"\x0a\x02\x12\x00")
    relayed = decode(base64.b64encode(sent.SerializeToString()).decode(), trace_ids=IDS, common={})
    assert relayed == decoded_alone(span())


def decoded_alone(only: Span) -> ExportTraceServiceRequest:
    alone = base64.b64encode(request(only).SerializeToString()).decode()
    return decode(alone, trace_ids=IDS, common={})


def test_of_too_many_attributes_and_events_it_is_told_how_many_were_cut() -> None:
    many = [text(f"k{number}", "") for number in range(500)]
    events = [Span.Event(name="e", time_unix_nano=7, attributes=many)] * 130
    (made,) = taken(span(attributes=many, events=events, dropped_events_count=1), common={"host": "own"})
    assert list(made.attributes) == [*many[-128:], text("host", "own")]
    assert (made.dropped_attributes_count, made.dropped_events_count) == (372, 3)
    assert {event.dropped_attributes_count for event in made.events} == {372}
    (made,) = taken(span(attributes=many, dropped_attributes_count=2**32 - 1))
    assert made.dropped_attributes_count == 2**32 - 1


def test_moments_that_a_backend_would_refuse_are_brought_near() -> None:
    before, tomorrow = time.time_ns(), 86_400 * 10**9
    (made,) = taken(span(start_time_unix_nano=2**64 - 1, end_time_unix_nano=2**64 - 1, events=[Span.Event(name="e")]))
    assert before + tomorrow <= made.end_time_unix_nano <= time.time_ns() + tomorrow
    assert made.start_time_unix_nano == made.end_time_unix_nano
    assert before <= made.events[0].time_unix_nano <= time.time_ns()
    (made,) = taken(span(start_time_unix_nano=0, end_time_unix_nano=9))
    assert (made.start_time_unix_nano, made.end_time_unix_nano) == (9, 9)
    (made,) = taken(span(start_time_unix_nano=0, end_time_unix_nano=0))
    assert before <= made.start_time_unix_nano == made.end_time_unix_nano <= time.time_ns()


def test_spans_of_two_traces_part() -> None:
    sent = request(span(name="a"), span(name="b", trace_id=OTHER), span(name="c"))
    relayed = decode(base64.b64encode(sent.SerializeToString()).decode(), trace_ids=IDS, common={})
    parts = {trace: [each.name for each in spans_of(part)] for trace, part in by_trace(relayed).items()}
    assert parts == {TRACE.hex(): ["a", "c"], OTHER.hex(): ["b"]}
    assert len(list(spans_of(relayed))) == 3


def test_a_span_that_is_asked_answers_as_opentelemetrys_own() -> None:
    sent = span(start_time_unix_nano=5, end_time_unix_nano=9, attributes=[text("a", "b")], status=Status(code=2))  # pyright: ignore[reportArgumentType]
    relayed = decode(base64.b64encode(request(sent).SerializeToString()).decode(), trace_ids=IDS, common={"n": 1})
    (seen,), (made,) = ended_spans(relayed), readable(relayed.SerializeToString())
    for each in (seen, made):
        assert (each.name, each.start_time, each.end_time, each.attributes) == ("chat m", 5, 9, {"a": "b", "n": 1})
    assert seen.is_error and made.status.status_code.name == "ERROR"
