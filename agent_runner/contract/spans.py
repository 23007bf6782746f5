"""The spans of one run: which are open, whose child each is, how each ends. Pure.

A `Span` is a value of our own and not the OpenTelemetry SDK's for three reasons: its ids stand in
events before any OpenTelemetry module is imported (and without one, when telemetry is off); a parent
is always passed, never taken from process-wide state; and a host can rebuild the same value from
events when the runner died. `agent_runner.contract.otlp` turns ended spans into OpenTelemetry's.

Names and attributes follow the GenAI semantic conventions (semantic-conventions-genai, in
development, hence strings).
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
"""OpenTelemetry's own default limit of events on a span."""


@dataclass(slots=True)
class SpanEvent:
    """A moment within a span; ``time`` in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: Attributes


@dataclass(slots=True)
class Span:
    """One span; times in nanoseconds since the epoch, ``end`` None while it is open."""

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
        """Mark the span as failed; the first reason given stays, its message redacted and in one line."""
        if self.error_type is None:
            self.error_type, self.error_message = error_type, brief(message)
            self.attributes["error.type"] = error_type

    def add_event(self, name: str, at: int, attributes: Attributes) -> None:
        """Note a moment, up to the limit."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(SpanEvent(name, at, attributes))


_CHANCE = random.SystemRandom()
"""Of its own: what a program does with `random.seed` repeats no id."""


class Ids:
    """Random trace and span ids, never zero; replaced by counted ones in tests."""

    def trace_id(self) -> str:
        """32 lower-case hex digits."""
        return f"{_CHANCE.getrandbits(128) or 1:032x}"

    def span_id(self) -> str:
        """16 lower-case hex digits."""
        return f"{_CHANCE.getrandbits(64) or 1:016x}"


class Spans:
    """Opens and closes the spans of one run and keeps those that ended until they are taken.

    ``common`` goes on every span: backends count attributes on the span itself, and children do not
    inherit.
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
        """Return a context for a run without a parent; its span id stands for no span."""
        return TraceContext(self._ids.trace_id(), "")

    def new_span_id(self) -> str:
        """Return a fresh span id."""
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
        """Open a span under a context from outside, or as a root of its trace.

        ``span_id`` is one drawn before (`new_span_id`), where it had to be told ahead of the span.
        """
        span = self._new(name, parent.trace_id, parent.span_id or None, attributes, start=start, span_id=span_id)
        span.parent_is_remote = bool(parent.span_id)
        span.tracestate = parent.tracestate
        return span

    def open_child(self, name: str, parent: Span, attributes: Attributes, *, start: int | None = None) -> Span:
        """Open a span under another one."""
        span = self._new(name, parent.trace_id, parent.span_id, attributes, start=start)
        span.tracestate = parent.tracestate
        return span

    def _new(
        self,
        name: str,
        trace_id: str,
        parent_id: str | None,
        attributes: Attributes,
        *,
        start: int | None = None,
        span_id: str = "",
    ) -> Span:
        began = self.clock() if start is None else start
        span = Span(name, trace_id, span_id or self._ids.span_id(), parent_id, began)
        span.attributes = {**self.common, **attributes}
        self._open[span.span_id] = span
        return span

    def close(self, span: Span, *, end: int | None = None) -> None:
        """End a span; one that has ended stays as it is."""
        if self._open.pop(span.span_id, None) is not None:
            # A wall clock can be set back while a tool runs.
            span.end = max(span.start, self.clock() if end is None else end)
            self._ended.append(span)

    def close_all(self, error_type: ErrorType, message: str) -> None:
        """End every open span as failed, the youngest first."""
        for span in reversed(list(self._open.values())):
            span.fail(error_type, message)
            self.close(span)

    @property
    def ended(self) -> int:
        """How many ended spans wait to be taken."""
        return len(self._ended)

    def take_ended(self) -> list[Span]:
        """Take the spans that ended since the last call."""
        taken, self._ended = self._ended, []
        return taken
