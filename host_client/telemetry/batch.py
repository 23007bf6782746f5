"""Frozen values that represent spans on their way through telemetry. Pure; imports no OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_SPANS = 512
MAX_BYTES = 1024 * 1024
"""Limits of one batch that `joined` makes; a single batch that is larger is kept whole."""


@dataclass(frozen=True, slots=True)
class EndedSpan:
    """The fields of an ended span that observers and the sampler read.

    Times are in nanoseconds since the epoch, ids in hex. Lists among the attributes are tuples.
    """

    name: str
    attributes: Mapping[str, Any]
    parent_span_id: str | None
    start_time: int
    end_time: int
    is_error: bool = False
    span_id: str = ""


class Batch(NamedTuple):
    """A serialized ``ExportTraceServiceRequest`` and the number of spans in it."""

    body: bytes
    spans: int


def spans_of(batches: Sequence[Batch]) -> int:
    """Return the number of spans in all batches."""
    return sum(batch.spans for batch in batches)


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Join batches into as few as the limits allow.

    Concatenated serialized requests parse as one request, because every field of the message is repeated.
    """
    groups: list[list[Batch]] = []
    spans = size = 0
    for batch in batches:
        spans, size = spans + batch.spans, size + len(batch.body)
        if not groups or spans > MAX_SPANS or size > MAX_BYTES:
            groups.append([])
            spans, size = batch.spans, len(batch.body)
        groups[-1].append(batch)
    return [Batch(b"".join(batch.body for batch in group), spans_of(group)) for group in groups]
