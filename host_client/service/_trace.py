"""A session's spans as OTLP JSON. Importing this module imports OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.sdk.trace import ReadableSpan

from agent_runner.contract.spans import Value
from host_client.telemetry import otlp as encoding
from host_client.telemetry.export.console import otlp_json
from host_client.telemetry.relay import decoding as relay

from ._kept import RELAYED

MAX_SPANS = 50_000


class Trace(NamedTuple):
    """An OTLP/JSON request, and how many spans there are beyond `MAX_SPANS`."""

    body: bytes
    left_out: int


async def trace_of(kept: AsyncIterator[bytes], *, trace_ids: frozenset[str], common: Mapping[str, Value]) -> Trace:
    """Return all spans that are kept, each once, read and written in a thread: 10,000 take seconds.

    A span is known by its trace and its own id; one of the host's own stands whatever a sandbox relayed under its ids.
    """
    payloads = [payload async for payload in kept]
    return await asyncio.to_thread(_trace, payloads, trace_ids, common)


def _trace(payloads: Sequence[bytes], trace_ids: frozenset[str], common: Mapping[str, Value]) -> Trace:
    spans: dict[tuple[int, int], ReadableSpan] = {}
    left_out: set[tuple[int, int]] = set()
    for payload in sorted(payloads, key=lambda payload: payload.startswith(RELAYED)):  # the host's own first
        for span in _read(payload, trace_ids, common):
            if (context := span.get_span_context()) is None:
                continue
            key = (context.trace_id, context.span_id)
            if key in spans or len(spans) < MAX_SPANS:
                spans.setdefault(key, span)
            else:
                left_out.add(key)
    return Trace(msgspec.json.encode(otlp_json(list(spans.values()))), len(left_out))


def _read(payload: bytes, trace_ids: frozenset[str], common: Mapping[str, Value]) -> list[ReadableSpan]:
    try:
        if payload.startswith(RELAYED):
            return relay.decode(payload[1:].decode(), trace_ids=trace_ids, common=common).readable()
        return encoding.decode(payload[1:])
    except (ValueError, DecodeError):
        return []  # what a sandbox forged, as the session's log tells
