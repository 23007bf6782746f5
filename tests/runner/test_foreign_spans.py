"""Spans of other programs are cleaned, and a request of any shape is read in bounded time and size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent_runner._foreign_spans import (
    JSON,
    MAX_ATTRIBUTES,
    MAX_EVENT_ATTRIBUTES,
    MAX_ITEMS,
    MAX_SPANS_OF_A_REQUEST,
    MAX_TEXT,
    PROTOBUF,
    ForeignSpan,
    UnreadableError,
    read_spans,
)
from agent_runner.contract.otlp import SCOPE
from agent_runner.contract.otlp_messages import values_of
from agent_runner.contract.spans import MAX_EVENTS

ID = b"12345678"
KEY = "sk-ant-api03-" + "x" * 93


def read(request: ExportTraceServiceRequest) -> list[ForeignSpan]:
    return read_spans(request.SerializeToString(), b"", PROTOBUF, 10**9)


def request_with(**fields: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(**{"span_id": ID, **fields})
    return request


def test_texts_are_cleaned_and_cut_and_what_only_sandspan_may_set_is_left_out() -> None:
    request = request_with(name=f"a\n{KEY}", trace_state="evil=1", parent_span_id=bytes(8))
    of_resource = request.resource_spans[0]
    for name in ("service.name", "service.instance.id", "process.command_args", "telemetry.sdk.language"):
        of_resource.resource.attributes.add(key=name).value.string_value = KEY
    of_resource.scope_spans[0].scope.name = SCOPE
    span = of_resource.scope_spans[0].spans[0]
    texts = {"url": f"http://x/?key={KEY}", "long": "y" * 5000, "user.id": "m", "langfuse.user.id": "m"}
    texts |= {"gen_ai.operation.name": "chat", "gen_ai.usage.cost": "1", "llm.token_count.total": "1"}
    for name, value in texts.items():
        span.attributes.add(key=name).value.string_value = value
    span.attributes.add(key="map").value.kvlist_value.values.add(key="x")
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=KEY))
    span.links.add(span_id=ID)
    (foreign,) = read(request)
    cleaned = foreign.span
    assert KEY.encode() not in cleaned.SerializeToString() + foreign.resource.SerializeToString()
    assert values_of(cleaned.attributes).keys() == {"url", "long", "map"}
    assert len(values_of(cleaned.attributes)["long"]) == MAX_TEXT
    assert values_of(foreign.resource.attributes).keys() == {"service.name", "telemetry.sdk.language"}
    assert (cleaned.trace_state, cleaned.parent_span_id, len(cleaned.links), cleaned.dropped_links_count) == (
        "",
        b"",
        0,
        1,
    )
    assert foreign.scope.name == f"process {SCOPE}"


@pytest.mark.parametrize("name", ["agent.session", "sandbox.create"])
def test_names_of_the_hosts_spans_get_a_prefix(name: str) -> None:
    (foreign,) = read(request_with(name=name))
    assert foreign.span.name == f"process {name}"


@pytest.mark.parametrize("span_id", [b"", b"1234567", bytes(8)])
def test_spans_without_a_valid_id_are_left_out(span_id: bytes) -> None:
    assert read(request_with(span_id=span_id)) == []


def test_the_numbers_of_values_are_limited() -> None:
    request = request_with()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for number in range(200):
        items = span.attributes.add(key=f"a{number}").value.array_value.values
        for _ in range(40):
            items.add(int_value=1)
        event = span.events.add(name="e")
        for each in range(20):
            event.attributes.add(key=f"a{each}").value.bool_value = True
    (foreign,) = read(request)
    cleaned = foreign.span
    assert [len(value) for value in values_of(cleaned.attributes).values()] == [MAX_ITEMS] * MAX_ATTRIBUTES
    assert [len(event.attributes) for event in cleaned.events] == [MAX_EVENT_ATTRIBUTES] * MAX_EVENTS
    assert (cleaned.dropped_attributes_count, cleaned.dropped_events_count) == (200 - MAX_ATTRIBUTES, 200 - MAX_EVENTS)


def empty(resources: int, scopes: int, spans: int) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for _ in range(resources):
        request.resource_spans.add()
    for _ in range(scopes):
        request.resource_spans[0].scope_spans.add()
    for _ in range(spans):
        request.resource_spans[0].scope_spans[0].spans.add()
    return request


@pytest.mark.parametrize("numbers", [(MAX_SPANS_OF_A_REQUEST + 1, 0, 0), (1, MAX_SPANS_OF_A_REQUEST, 0)])
def test_a_request_of_too_many_parts_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(UnreadableError, match="more than 10000"):
        read(empty(*numbers))


def test_so_is_one_of_too_many_spans() -> None:
    with pytest.raises(UnreadableError, match="more than 10000 spans"):
        read(empty(1, 1, MAX_SPANS_OF_A_REQUEST + 1))
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{}] * (MAX_SPANS_OF_A_REQUEST + 1)}]}]}).encode()
    with pytest.raises(UnreadableError, match="more than 10000 spans"):
        read_spans(body, b"", JSON, 10**9)
