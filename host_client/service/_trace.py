"""Export of a session's spans as OTLP/JSON. Importing this module imports OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner.contract.spans import Value
from host_client.telemetry import otlp
from host_client.telemetry.export.console import request_json
from host_client.telemetry.relay.decoding import decode

from ._kept import RELAYED

MAX_SPANS = 50_000


class Trace(NamedTuple):
    """An OTLP/JSON request with at most `MAX_SPANS` spans, and the number of spans that were left out."""

    body: bytes
    left_out: int


async def trace_of(kept: AsyncIterator[bytes], *, trace_ids: frozenset[str], common: Mapping[str, Value]) -> Trace:
    """Return the trace of stored spans, each span once; converted in a thread, as 10,000 spans take seconds.

    A span is identified by its trace id and span id. A span of the host wins over one from a sandbox with the same ids.
    """
    payloads = [payload async for payload in kept]
    return await asyncio.to_thread(_trace, payloads, trace_ids, common)


def _trace(payloads: Sequence[bytes], trace_ids: frozenset[str], common: Mapping[str, Value]) -> Trace:
    included: set[tuple[bytes, bytes]] = set()
    left_out: set[tuple[bytes, bytes]] = set()
    requests: list[ExportTraceServiceRequest] = []
    for payload in sorted(payloads, key=lambda payload: payload.startswith(RELAYED)):  # the host's own first
        request = _read(payload, trace_ids, common)
        mask: list[bool] = []
        for span in otlp.spans_of(request):
            key = span.trace_id, span.span_id
            is_new = key not in included
            mask.append(is_new and len(included) < MAX_SPANS)
            if is_new:
                (included if mask[-1] else left_out).add(key)
        requests.append(otlp.select(request, mask))
    return Trace(msgspec.json.encode(request_json(otlp.merged(requests))), len(left_out))


def _read(payload: bytes, trace_ids: frozenset[str], common: Mapping[str, Value]) -> ExportTraceServiceRequest:
    try:
        if payload.startswith(RELAYED):
            return decode(payload[1:].decode(), trace_ids=trace_ids, common=common)
        return ExportTraceServiceRequest.FromString(payload[1:])
    except (ValueError, DecodeError):
        return ExportTraceServiceRequest()  # forged by a sandbox
