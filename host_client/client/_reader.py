"""A runner's stdout, untrusted, to events in order. Pure.

Whatever can write to that stream is not to be believed beyond the contract: a line that breaks it is
a `Fault`, is counted, and the stream goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent_runner.contract.lines import LineFramer, Oversized
from agent_runner.contract.protocol import MAX_LINE_BYTES, AnyEvent, End, ProtocolError, UnknownEvent, decode_event


@dataclass(frozen=True)
class Fault:
    """Something that is no event: a line that was thrown away, or events that were lost."""

    message: str


@dataclass(frozen=True)
class Gap:
    """Events are missing before ``seq``: what is wanted next stands in the journal."""

    seq: int


class EventReader:
    """Frames, decodes and orders; remembers the last number it gave out.

    An event seen before is dropped, so that a stream may be read again from anywhere. At a gap the
    stream is of no more use; `begin_stream` starts on another one.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.ended = False
        self.size = 0
        """In bytes, the line of the item given out last."""
        self._framer = LineFramer(MAX_LINE_BYTES)

    def begin_stream(self) -> None:
        """Forget the half line of the stream that was lost."""
        self._framer = LineFramer(MAX_LINE_BYTES)

    def skip_to(self, seq: int) -> None:
        """Give up on what is missing before ``seq``."""
        self.last_seq = max(self.last_seq, seq - 1)

    def feed(self, chunk: bytes) -> Iterator[AnyEvent | Fault | Gap]:
        """Yield what a chunk completes, up to a gap or the end."""
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
            return self._fault(f"a line of {line.size} bytes")
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
            return event if event.type == "text_delta" else self._fault(f"an event of type {event.type} has no seq")
        if seq <= self.last_seq:
            return None
        if seq > self.last_seq + 1:
            return Gap(seq)
        self.last_seq = seq
        self.ended = isinstance(event, End)
        return None if isinstance(event, UnknownEvent) else event

    @staticmethod
    def _fault(message: str) -> Fault:
        return Fault(f"ignored what is no event: {message}")
