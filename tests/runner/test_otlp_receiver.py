"""The OTLP receiver takes spans over real HTTP, and refuses what it cannot take."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner._foreign_spans import ForeignSpan
from agent_runner._otlp_receiver import MAX_BODY, OtlpReceiver

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PROTOBUF, JSON = {"content-type": "application/x-protobuf"}, {"content-type": "application/json; charset=utf-8"}

SPAN = {
    "traceId": "0AF7651916CD43DD8448EB211C80319C",
    "spanId": "b7ad6b7169203331",
    "name": "x",
    "kind": 3,
    "startTimeUnixNano": "1",
    "links": [{"traceId": "not hex"}],
    "unknown": 1,
}


def as_json(span: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


def as_protobuf(name: str = "x") -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name=name, span_id=b"12345678")
    return request.SerializeToString()


class Taken(list[tuple[ForeignSpan, int]]):
    """The spans that a receiver took, with the ports they came from."""

    async def take(self, spans: list[ForeignSpan], port: int) -> None:
        self += [(span, port) for span in spans]


@asynccontextmanager
async def receiving() -> AsyncGenerator[tuple[httpx.AsyncClient, Taken]]:
    receiver, taken = OtlpReceiver(), Taken()
    receiver.take = taken.take
    await receiver.start()
    async with httpx.AsyncClient(base_url=receiver.endpoint, trust_env=False) as client:
        yield client, taken
    await receiver.stop(1)


async def test_protobuf_and_json_are_taken_compressed_or_not() -> None:
    async with receiving() as (client, taken):
        for body, headers in (
            (as_protobuf(), PROTOBUF),
            (gzip.compress(as_protobuf()), {**PROTOBUF, "content-encoding": "gzip"}),
            (as_json(SPAN), JSON),
        ):
            answer = await client.post("/v1/traces", content=body, headers=headers)
            assert (answer.status_code, answer.content) == (200, b"{}" if headers is JSON else b"")
            assert answer.headers["content-type"] == headers["content-type"].partition(";")[0]
    spans = [foreign.span for foreign, _ in taken]
    assert [span.name for span in spans] == ["x"] * 3
    assert (spans[2].trace_id.hex(), spans[2].span_id.hex(), spans[2].kind) == (
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
        3,
    )
    assert all(port > 0 for _, port in taken)


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "why"),
    [
        ("/v1/metrics", PROTOBUF, b"", 404, "takes POST /v1/traces only"),
        ("/v1/traces", {"content-type": "text/plain"}, b"", 415, "application/x-protobuf and application/json"),
        ("/v1/traces", {**PROTOBUF, "host": "4318-sandbox.example"}, b"", 403, "its own address as Host only"),
        ("/v1/traces", {}, b"", 415, "application/x-protobuf and application/json"),
        ("/v1/traces", PROTOBUF, b"\xff\xff", 400, "cannot be read as OTLP"),
        ("/v1/traces", JSON, b"{", 400, "cannot be read as OTLP"),
        ("/v1/traces", JSON, b"[]", 400, "cannot be read as OTLP"),
        ("/v1/traces", JSON, b"[" * 100_000, 400, "cannot be read as OTLP"),
        ("/v1/traces", JSON, as_json({"spanId": "xyz"}), 400, "cannot be read as OTLP"),
        ("/v1/traces", {**PROTOBUF, "content-encoding": "br"}, b"x", 400, "content-encoding 'br' is not known"),
        ("/v1/traces", {**PROTOBUF, "content-encoding": "gzip"}, b"x", 400, "cannot be read as OTLP"),
        ("/v1/traces", PROTOBUF, b"x" * (MAX_BODY + 1), 413, f"at most {MAX_BODY} bytes"),
        (
            "/v1/traces",
            {**PROTOBUF, "content-encoding": "gzip"},
            gzip.compress(b"x" * (MAX_BODY + 1)),
            413,
            f"at most {MAX_BODY} bytes",
        ),
    ],
)
async def test_what_it_cannot_take_is_refused_with_a_reason(
    path: str, headers: dict[str, str], body: bytes, status: int, why: str
) -> None:
    async with receiving() as (client, taken):
        answer = await client.post(path, content=body, headers=headers)
        assert (answer.status_code, why in answer.text) == (status, True), answer.text
        assert (await client.get("/v1/traces")).status_code == 404
    assert taken == []


async def test_before_the_run_takes_spans_programs_are_told_to_send_them_again() -> None:
    receiver = OtlpReceiver()
    await receiver.start()
    async with httpx.AsyncClient(base_url=receiver.endpoint, trust_env=False) as client:
        answer = await client.post("/v1/traces", content=as_protobuf(), headers=PROTOBUF)
    await receiver.stop(1)
    assert answer.status_code == 503
