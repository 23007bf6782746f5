"""Spans on their way, as bytes. Pure, and without OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_SPANS = 512
MAX_BYTES = 1024 * 1024
"""Most that is joined to one; what is more by itself stays as it is."""


class Batch(NamedTuple):
    """A serialized ``ExportTraceServiceRequest`` and the number of spans in it."""

    body: bytes
    spans: int


def spans_of(batches: Sequence[Batch]) -> int:
    """Return how many spans they have between them."""
    return sum(batch.spans for batch in batches)


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Return the same in as few as there may be: requests that follow each other byte by byte are one request."""
    groups: list[list[Batch]] = []
    spans = size = 0
    for batch in batches:
        spans, size = spans + batch.spans, size + len(batch.body)
        if not groups or spans > MAX_SPANS or size > MAX_BYTES:
            groups.append([])
            spans, size = batch.spans, len(batch.body)
        groups[-1].append(batch)
    return [Batch(b"".join(batch.body for batch in group), spans_of(group)) for group in groups]
