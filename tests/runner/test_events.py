"""Events are numbered without gaps, also if the journal or the reader fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent_runner._events import Events
from agent_runner._journal import Journal
from agent_runner.contract import protocol
from agent_runner.contract.protocol import MAX_LINE_BYTES, LogData, TextData, ToolUseData, TurnStartData
from agent_runner.contract.spans import Spans
from agent_runner.contract.trace_context import TraceContext
from tests.support.runs import read_events, seqs

CONTEXT = TraceContext("a" * 32, "")


@dataclass
class Kept:
    """An output that keeps its lines."""

    lines: list[bytes] = field(default_factory=list[bytes])
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
        self.came.set()
        assert (offset is None) or not live
        self.lines.append(line)

    @property
    def events(self) -> list[protocol.AnyEvent]:
        return read_events(b"".join(self.lines))


def remark(text: str = "x") -> LogData:
    return LogData(stream="runner", text=text)


def test_an_event_stands_in_the_journal_before_it_is_sent(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))

    class Looks:
        """An output that checks that its lines are in the journal."""

        seen = 0

        def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
            assert offset is not None
            assert journal.read(offset) == line
            self.seen += 1

    looks = Looks()
    events = Events(looks, journal, CONTEXT)
    for _ in range(3):
        events.emit(remark())
    assert looks.seen == 3
    journal.close()


def test_an_event_that_is_too_large_is_left_out_and_leaves_no_hole() -> None:
    kept = Kept()
    events = Events(kept, None, CONTEXT)
    events.emit(remark())
    events.emit(ToolUseData(id="t", name="Write", input={"content": "x" * (MAX_LINE_BYTES + 1)}))
    events.emit(remark())
    assert [event.type for event in kept.events] == ["log", "error", "log"]
    assert seqs(kept.events) == [1, 2, 3]
    error = kept.events[1]
    assert isinstance(error, protocol.Error)
    assert error.data.error_type == "protocol"
    assert error.data.message.endswith("bytes was left out: ToolUse")
    assert max(map(len, kept.lines)) <= MAX_LINE_BYTES


def test_an_event_names_its_span_and_one_that_opens_it_also_its_parent_and_start() -> None:
    kept = Kept()
    spans = Spans({}, clock=lambda: 5_000_000_000)
    turn = spans.open_root("agent.execute", TraceContext("c" * 32, "d" * 16), {})
    events = Events(kept, None, CONTEXT, clock=lambda: 7.5)
    events.emit(TurnStartData(turn=1, prompt_size=0), turn, opens=True)
    events.emit(remark(), turn)
    events.emit(remark())
    opening, inside, outside = kept.events
    assert (opening.trace_id, opening.span_id, opening.parent_span_id) == ("c" * 32, turn.span_id, "d" * 16)
    assert (opening.ts, inside.ts) == (5.0, 7.5)
    assert (inside.span_id, inside.parent_span_id) == (turn.span_id, None)
    assert (outside.trace_id, outside.span_id) == ("a" * 32, "0" * 16)


@pytest.mark.anyio
async def test_deltas_are_coalesced_and_come_before_the_event_that_follows_them() -> None:
    kept = Kept()
    events = Events(kept, None, CONTEXT)
    for piece in "one two three":
        events.delta(piece, "m1", None)
    events.delta("other", "m2", None)
    events.emit(TextData(text="other", message_id="m2"))
    texts = [event for event in kept.events if isinstance(event, protocol.TextDelta | protocol.Text)]
    shown = [(event.type, event.seq, event.data.text) for event in texts]
    assert shown == [("text_delta", None, "one two three"), ("text_delta", None, "other"), ("text", 1, "other")]
    kept.came.clear()
    events.delta("late", "m3", None)
    async with asyncio.timeout(30):
        await kept.came.wait()  # nothing else comes, so a timer sends it
    assert kept.events[-1].type == "text_delta"


def test_the_journal_holds_what_has_a_number() -> None:
    kept, journal = Kept(), Journal(None)
    events = Events(kept, journal, CONTEXT)
    events.emit(remark("one"))
    events.emit(remark("two"))
    assert journal.read(0) == b"".join(kept.lines)
    journal.close()
