"""Number events, append them to the journal, then send them. This order guarantees that no reader loses an event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from ._journal import Journal
from .contract.protocol import (
    MAX_LINE_BYTES,
    AnyEvent,
    ErrorData,
    EventData,
    HeartbeatData,
    LogData,
    TextDeltaData,
    encode,
    event_of,
)
from .contract.spans import Span
from .contract.trace_context import TraceContext

NO_SPAN = "0" * 16

DELTA_SECONDS = 0.05
"""Seconds within which text deltas are combined into one event."""


class Output(Protocol):
    """Takes encoded lines without blocking; in production a `StdoutWriter`."""

    def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
        """Send a line; see `StdoutWriter.put`."""


class Events:
    """Numbers the events of a run, and appends each to the journal before it sends it."""

    def __init__(
        self,
        output: Output,
        journal: Journal | None,
        context: TraceContext,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._output = output
        self._journal = journal
        self._context = context
        self._clock = clock
        self._seq = 0
        self.last_sent = time.monotonic()
        """Time (of `time.monotonic`) of the last event but heartbeats."""
        self._delta: list[str] = []
        self._delta_of: tuple[str | None, Span | None] = (None, None)
        self._delta_timer: asyncio.TimerHandle | None = None

    def emit(self, data: EventData, span: Span | None = None, *, opens: bool = False) -> None:
        """Number, journal and send an event. If it ``opens`` its span, it also names the span's parent."""
        self.flush_delta()
        self.last_sent = time.monotonic()
        line = self._encoded(data, span, opens)
        if len(line) > MAX_LINE_BYTES:
            self._seq -= 1
            text = f"an event of {len(line)} bytes was left out: {type(data).__name__.removesuffix('Data')}"
            line = self._encoded(ErrorData(error_type="protocol", message=text), span, opens=False)
        offset = None
        if self._journal is not None:
            had_failed = self._journal.error is not None
            offset = self._journal.append(line)
            if self._journal.error is not None and not had_failed:
                self._output.put(line, None)
                text = f"the journal ends before seq {self._seq}: {self._journal.error}; attach ends there"
                self.emit(LogData(stream="runner", text=text))
                return
        self._output.put(line, offset)

    @property
    def last_seq(self) -> int:
        """Return the seq of the last event that has one; 0 before the first."""
        return self._seq

    def delta(self, text: str, message_id: str | None, span: Span | None) -> None:
        """Send a piece of text within `DELTA_SECONDS`, combined with the pieces that follow."""
        if self._delta_of != (message_id, span):
            self.flush_delta()
            self._delta_of = (message_id, span)
        self._delta.append(text)
        if self._delta_timer is None:
            self._delta_timer = asyncio.get_running_loop().call_later(DELTA_SECONDS, self.flush_delta)

    def flush_delta(self) -> None:
        """Send the text that waits to be combined."""
        if self._delta_timer is not None:
            self._delta_timer.cancel()
            self._delta_timer = None
        if not self._delta:
            return
        message_id, span = self._delta_of
        text = "".join(self._delta)
        self._delta.clear()
        self.last_sent = time.monotonic()
        self.send_live(TextDeltaData(text=text, message_id=message_id), span)

    def send_live(self, data: TextDeltaData | HeartbeatData, span: Span | None) -> None:
        """Send an event that has no seq and is not in the journal."""
        self._output.put(encode(self._event(data, span, None, opens=False)), None, live=True)

    def _encoded(self, data: EventData, span: Span | None, opens: bool) -> bytes:
        self._seq += 1
        return encode(self._event(data, span, self._seq, opens))

    def _event(self, data: EventData, span: Span | None, seq: int | None, opens: bool) -> AnyEvent:
        return event_of(
            data,
            seq=seq,
            # A host rebuilds the span from this event if the runner dies, so the event has the span's start time.
            ts=span.start / 1e9 if span and opens else self._clock(),
            trace_id=span.trace_id if span else self._context.trace_id,
            span_id=span.span_id if span else self._context.span_id or NO_SPAN,
            parent_span_id=(span.parent_span_id if span and opens else None),
        )
