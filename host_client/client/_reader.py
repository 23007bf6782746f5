"""Decodes the bytes of a runner's stdout into events, in order. Pure.

The bytes are untrusted: a program in the sandbox may have written them. A line that breaks the contract becomes a
`Fault`, and reading continues with the next line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent_runner.contract.lines import LineFramer, Oversized
from agent_runner.contract.protocol import (
    LIVE,
    MAX_LINE_BYTES,
    AnyEvent,
    End,
    Heartbeat,
    ProtocolError,
    UnknownEvent,
    decode_event,
)


@dataclass(frozen=True)
class Fault:
    """A report of a line that was ignored because it is not an event, or of events that were lost."""

    message: str


@dataclass(frozen=True)
class Gap:
    """A hole in this stream: events before ``seq`` are missing, and the runner's journal has them."""

    seq: int


class EventReader:
    """Splits bytes into lines, decodes them and yields each event once, in the order of ``seq``.

    An event that was yielded before is dropped, so a stream may be read again from any position. After a `Gap` the
    stream is given up; `begin_stream` prepares for another one.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.ended = False
        self.size = 0
        """Length in bytes of the line that the last item was read from."""
        self._framer = LineFramer(MAX_LINE_BYTES)

    def begin_stream(self) -> None:
        """Prepare for a new stream: drop the incomplete line at the end of the previous one."""
        self._framer = LineFramer(MAX_LINE_BYTES)

    def skip_to(self, seq: int) -> None:
        """Give up waiting for the events before ``seq``."""
        self.last_seq = max(self.last_seq, seq - 1)

    def feed(self, chunk: bytes) -> Iterator[AnyEvent | Fault | Gap]:
        """Yield the items of the lines that a chunk completes, up to a gap or the ``end`` event."""
        for line in self._framer.feed(chunk):
            if self.ended:
                return
            self.size = line.size if isinstance(line, Oversized) else len(line)
            item = self._item(line)
            if item is not None:
                yield item
            if isinstance(item, Gap):
                return

    def _item(self, line: bytes | Oversized) -> AnyEvent | Fault | Gap | None:
        if isinstance(line, Oversized):
            return Fault(f"ignored a line of {line.size} bytes, which is more than {MAX_LINE_BYTES}")
        if not line.strip():
            return None
        try:
            event = decode_event(line)
        except ProtocolError as error:
            return self._fault(str(error)[:200])
        return self._in_order(event)

    def _in_order(self, event: AnyEvent | UnknownEvent) -> AnyEvent | Fault | Gap | None:
        seq = event.seq
        if seq is None:
            if isinstance(event, UnknownEvent):
                return None
            if isinstance(event, Heartbeat) and event.data.last_seq > self.last_seq:
                return Gap(event.data.last_seq + 1)
            return event if isinstance(event, LIVE) else self._fault(f"its type {event.type} requires a seq")
        if seq <= self.last_seq:
            return None
        if seq > self.last_seq + 1:
            return Gap(seq)
        self.last_seq = seq
        self.ended = isinstance(event, End)
        return None if isinstance(event, UnknownEvent) else event

    @staticmethod
    def _fault(message: str) -> Fault:
        return Fault(f"ignored a line that is not an event: {message}")
