"""Spans of one run, open and ended. Pure.

`Span` is a class of our own, for three reasons: events carry its ids even if no OpenTelemetry module is imported; a
parent is always passed explicitly, never taken from process-wide state; and a host can rebuild the same value from the
events of a dead runner. `agent_runner.contract.otlp` encodes ended spans for OpenTelemetry.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .protocol import ErrorType
from .sanitize import brief
from .trace_context import TraceContext

Value = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Value]

MAX_EVENTS = 128
"""Maximum number of events on a span, as in OpenTelemetry's SDK."""


@dataclass(slots=True)
class SpanEvent:
    """An event on a span; ``time`` is in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: Attributes


@dataclass(slots=True)
class Span:
    """A span; its times are in nanoseconds since the epoch, and ``end`` is None while it is open."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    start: int
    kind: Literal["internal", "client"] = "internal"
    parent_is_remote: bool = False
    tracestate: str = ""
    end: int | None = None
    attributes: Attributes = field(default_factory=dict[str, Value])
    events: list[SpanEvent] = field(default_factory=list[SpanEvent])
    error_type: ErrorType | None = None
    error_message: str = ""

    def fail(self, error_type: ErrorType, message: str = "") -> None:
        """Mark the span as failed, unless it is already; the message is redacted and put into one line."""
        if self.error_type is None:
            self.error_type, self.error_message = error_type, brief(message)
            self.attributes["error.type"] = error_type

    def add_event(self, name: str, at: int, attributes: Attributes) -> None:
        """Add an event, unless the span has `MAX_EVENTS`."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(SpanEvent(name, at, attributes))


_RANDOM = random.SystemRandom()
"""Source of ids that a program's `random.seed` does not affect."""


class Ids:
    """Makes random trace and span ids, which are never zero; tests replace it."""

    def trace_id(self) -> str:
        """Return a trace id of 32 lower-case hex digits."""
        return f"{_RANDOM.getrandbits(128) or 1:032x}"

    def span_id(self) -> str:
        """Return a span id of 16 lower-case hex digits."""
        return f"{_RANDOM.getrandbits(64) or 1:016x}"


class Spans:
    """Opens and closes the spans of one run, and keeps ended spans until they are taken.

    The attributes in ``common`` go on every span, as backends do not inherit attributes from parents.
    """

    def __init__(
        self,
        common: Mapping[str, Value],
        *,
        ids: Ids | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.common: Attributes = dict(common)
        self.clock = clock
        self._ids = ids or Ids()
        self._open: dict[str, Span] = {}
        self._ended: list[Span] = []

    def new_trace(self) -> TraceContext:
        """Return the context of a new trace; its span id is empty, as there is no parent."""
        return TraceContext(self._ids.trace_id(), "")

    def new_span_id(self) -> str:
        """Return a new span id."""
        return self._ids.span_id()

    def open_root(
        self,
        name: str,
        parent: TraceContext,
        attributes: Attributes,
        span_id: str = "",
        *,
        start: int | None = None,
    ) -> Span:
        """Open a span whose parent is in another process, or which has none.

        ``span_id`` is an id from `new_span_id` that was passed on before the span began.
        """
        span = self._open_span(name, parent, attributes, span_id, start)
        span.parent_is_remote = bool(parent.span_id)
        return span

    def open_child(self, name: str, parent: Span, attributes: Attributes, *, start: int | None = None) -> Span:
        """Open a span whose parent is another span of this run."""
        return self._open_span(name, parent, attributes, "", start)

    def _open_span(
        self, name: str, parent: TraceContext | Span, attributes: Attributes, span_id: str, start: int | None
    ) -> Span:
        began = self.clock() if start is None else start
        span = Span(name, "", span_id or self._ids.span_id(), None, began, attributes=attributes)
        self.adopt(span, parent)
        return span

    def orphan(self, name: str, attributes: Attributes) -> Span:
        """Return a span that begins now and whose parent is not known yet; `adopt` opens it."""
        return Span(name, "", self._ids.span_id(), None, self.clock(), attributes=attributes)

    def adopt(self, span: Span, parent: TraceContext | Span) -> None:
        """Give a span its parent, and open it."""
        span.trace_id, span.parent_span_id, span.tracestate = parent.trace_id, parent.span_id or None, parent.tracestate
        span.attributes = {**self.common, **span.attributes}
        self._open[span.span_id] = span

    def close(self, span: Span, *, end: int | None = None) -> None:
        """End a span, unless it has ended."""
        if self._open.pop(span.span_id, None) is not None:
            # The wall clock can be set back during the span.
            span.end = max(span.start, self.clock() if end is None else end)
            self._ended.append(span)

    def close_all(self, error_type: ErrorType, message: str) -> None:
        """End all open spans as failed, the last opened first."""
        for span in reversed(list(self._open.values())):
            span.fail(error_type, message)
            self.close(span)

    @property
    def ended(self) -> int:
        """Return the number of ended spans that have not been taken."""
        return len(self._ended)

    def take_ended(self) -> list[Span]:
        """Return the spans that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended
