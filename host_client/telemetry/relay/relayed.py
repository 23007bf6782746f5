"""Spans of a sandbox as the OTLP message that they came in: what nobody looks at is not made an object of.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status

from host_client.telemetry.otlp import decode, status_of

from .shallow import Message, Request, spans_of


def compact(request: Message) -> Message:
    """Return a copy without the memory of what was taken out, which a message gives back with all of it at once."""
    copy = Request()
    copy.CopyFrom(request)
    return copy


class Parent(NamedTuple):
    """What is known of the span above."""

    span_id: int


class RelayedSpan:
    """What observers and the sampler ask a span for, most of it read from the message when they ask."""

    __slots__ = ("_message", "attributes", "name")

    def __init__(self, message: Message, attributes: Mapping[str, Any]) -> None:
        self.name: str = message.name
        self.attributes = attributes
        self._message = message

    @property
    def parent(self) -> Parent | None:
        """The span above it."""
        span_id = self._message.parent_span_id
        return Parent(int.from_bytes(span_id, "big")) if span_id else None

    @property
    def start_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._message.start_time_unix_nano

    @property
    def end_time(self) -> int:
        """Nanoseconds since the epoch."""
        return self._message.end_time_unix_nano

    @property
    def status(self) -> Status:
        """Whether it failed."""
        return status_of(self._message.status)


class Relayed:
    """Spans that were checked (see `relay`), and the attributes of each. Not changed any more once it was handed on."""

    def __init__(self, request: Message, attributes: Sequence[Mapping[str, Any]]) -> None:
        self._request = request
        self._attributes = attributes
        self._encoded: bytes | None = None

    def __len__(self) -> int:
        return len(self._attributes)

    def span_ids(self) -> list[str]:
        """Return the ids of its spans, in hex."""
        return [span.span_id.hex() for span in spans_of(self._request)]

    def keep_only(self, wanted: Sequence[bool]) -> int:
        """Take out spans, of which it is said one by one whether they are wanted; return how many they were."""
        if all(wanted):
            return 0
        answers = iter(wanted)
        for of_resource in self._request.resource_spans:
            for of_scope in of_resource.scope_spans:
                unwanted = [number for number in range(len(of_scope.spans)) if not next(answers)]
                for number in reversed(unwanted):
                    del of_scope.spans[number]
        self._request, self._encoded = compact(self._request), None
        self._attributes = list(compress(self._attributes, wanted))
        return len(wanted) - len(self._attributes)

    def spans(self) -> Iterator[RelayedSpan]:
        """Yield its spans, to be asked."""
        return map(RelayedSpan, spans_of(self._request), self._attributes)

    def readable(self) -> list[ReadableSpan]:
        """Return its spans as OpenTelemetry's SDK has them."""
        return decode(self.encoded())

    def by_trace(self) -> dict[str, Relayed]:
        """Return its spans by the id of their trace, in hex; hardly ever are they of more than one."""
        ids = {span.trace_id for span in spans_of(self._request)}
        if len(ids) == 1:
            return {ids.pop().hex(): self}
        return {trace_id.hex(): self._of(trace_id) for trace_id in sorted(ids)}

    def _of(self, trace_id: bytes) -> Relayed:
        part = Relayed(compact(self._request), self._attributes)
        part.keep_only([span.trace_id == trace_id for span in spans_of(self._request)])
        return part

    def encoded(self) -> bytes:
        """Return a serialized OTLP request; made once."""
        if (encoded := self._encoded) is None:
            encoded = self._encoded = bytes(self._request.SerializeToString())
        return encoded
