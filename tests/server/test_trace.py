"""A session's trace prefers the host's own spans, and reading it does not block other requests."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from host_client.service import _trace as traces
from host_client.service._kept import own, relayed
from host_client.service._trace import Trace, trace_of

pytestmark = pytest.mark.anyio
HERE, OTHER = "ab" * 16, "cd" * 16


def request(name: str, *numbers: int, trace_id: str = HERE) -> bytes:
    """Return a serialized OTLP request with a span for each number, which is its span id."""
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for number in numbers:
        spans.add(
            name=name,
            trace_id=bytes.fromhex(trace_id),
            span_id=number.to_bytes(8, "big"),
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=1,
            end_time_unix_nano=2,
        )
    return made.SerializeToString()


def of_sandbox(otlp: bytes) -> bytes:
    return relayed(base64.b64encode(otlp).decode())


async def made(*payloads: bytes) -> Trace:
    async def kept() -> AsyncIterator[bytes]:
        for payload in payloads:
            yield payload

    return await trace_of(kept(), trace_ids=frozenset((HERE, OTHER)), common={})


def named(trace: Trace) -> set[tuple[str, int, str]]:
    found: Any = json.loads(trace.body)
    return {
        (span["traceId"], int(span["spanId"], 16), span["name"])
        for resource in found["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    }


async def test_a_relayed_span_does_not_take_the_place_of_the_hosts_own() -> None:
    forged, real = of_sandbox(request("forged", 1, 2)), own(request("agent.session", 1))
    assert named(await made(forged, real)) == {(HERE, 1, "agent.session"), (HERE, 2, "forged")}
    assert named(await made(real, forged)) == {(HERE, 1, "agent.session"), (HERE, 2, "forged")}


async def test_spans_of_two_traces_may_have_the_same_id() -> None:
    two = of_sandbox(request("chat", 1)), of_sandbox(request("chat", 1, trace_id=OTHER))
    assert named(await made(*two)) == {(HERE, 1, "chat"), (OTHER, 1, "chat")}


async def test_spans_beyond_the_most_are_told_and_the_hosts_own_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_SPANS", 3)
    cut = await made(of_sandbox(request("chat", 2, 3, 4, 5)), of_sandbox(request("chat", 5, 2)), own(request("own", 1)))
    assert named(cut) == {(HERE, 1, "own"), (HERE, 2, "chat"), (HERE, 3, "chat")}
    assert cut.left_out == 2


async def test_others_go_on_while_a_trace_is_read() -> None:
    turns, reading = 0, asyncio.create_task(made(of_sandbox(request("chat", *range(1, 2001)))))
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(named(await reading)) == 2000
    assert turns > 20
