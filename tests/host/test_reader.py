"""The reader of a runner's stdout yields valid events in order and once, and survives any untrusted input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.contract.protocol import (
    MAX_LINE_BYTES,
    AnyEvent,
    End,
    EndData,
    Heartbeat,
    HeartbeatData,
    Log,
    LogData,
    TextDelta,
    TextDeltaData,
    encode,
)
from host_client.client._reader import EventReader, Fault, Gap

ID: dict[str, Any] = {"trace_id": "a" * 32, "span_id": "b" * 16}


def log(seq: int, text: str = "x") -> bytes:
    return encode(Log(v=1, ts=1.0, seq=seq, data=LogData(stream="runner", text=text), **ID))


def end(seq: int) -> bytes:
    return encode(End(v=1, ts=1.0, seq=seq, data=EndData(reason="completed", exit_code=0), **ID))


def events_of(items: list[AnyEvent | Fault | Gap]) -> list[int | None]:
    return [item.seq for item in items if not isinstance(item, Fault | Gap)]


def raw(**fields: Any) -> bytes:
    return json.dumps({"v": 1, "ts": 1.0, "type": "log", **ID, **fields}).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b'"end"\n',
        b"{}\n",
        b"[" * 100_000 + b"\n",
        raw(seq=1, data={"stream": "runner"}),
        raw(seq=1, data={"stream": "root", "text": "x"}),
        raw(seq="1", data={"stream": "runner", "text": "x"}),
        raw(seq=1.5, data={"stream": "runner", "text": "x"}),
        raw(seq=1, v=2, data={"stream": "runner", "text": "x"}),
        raw(seq=1, type="end", data={"reason": "because", "exit_code": 0}),
        raw(data={"stream": "runner", "text": "no seq"}),
        b'{"v":1,"seq":1,"ts":NaN,"type":"log"}\n',
        b'{"type":"tool_use","v":1,"seq":1,"ts":1,"trace_id":"a","span_id":"b","data":'
        + b'{"id":"x","name":"y","input":'
        + b'{"a":' * 50_000
        + b"1"
        + b"}" * 50_000
        + b"}}\n",
    ],
)
def test_a_line_that_breaks_the_contract_is_told_and_skipped(line: bytes) -> None:
    reader = EventReader()
    items = list(reader.feed(line + log(1)))
    assert [type(item) for item in items] == [Fault, Log]


def test_a_huge_line_is_thrown_away_without_being_held() -> None:
    reader = EventReader()
    for _ in range(40):
        assert list(reader.feed(b"x" * 1_000_000)) == []
    items = list(reader.feed(b"\n" + log(1)))
    assert items[0] == Fault(f"ignored a line of {40 * 1_000_000} bytes, which is more than {MAX_LINE_BYTES}")
    assert events_of(items) == [1]
    assert MAX_LINE_BYTES < 40 * 1_000_000


def test_a_type_from_the_future_is_skipped_and_counts_as_read() -> None:
    reader = EventReader()
    future = raw(seq=2, type="hologram", data={"any": "thing"})
    items = list(reader.feed(log(1) + future + log(3)))
    assert (events_of(items), len(items)) == ([1, 3], 2)


def test_an_event_seen_before_is_dropped() -> None:
    reader = EventReader()
    assert events_of(list(reader.feed(log(1) + log(2) + log(1) + log(2) + log(0) + log(-5) + log(3)))) == [1, 2, 3]


def test_a_gap_stops_the_stream_and_another_one_goes_on_behind_it() -> None:
    reader = EventReader()
    items = list(reader.feed(log(1) + log(4) + log(5)))
    assert items[1:] == [Gap(4)]
    reader.begin_stream()
    assert events_of(list(reader.feed(log(1) + log(2) + log(3) + log(4)))) == [2, 3, 4]


def test_nothing_counts_after_the_end() -> None:
    reader = EventReader()
    assert events_of(list(reader.feed(log(1) + end(2) + end(3) + log(4)))) == [1, 2]
    assert reader.ended
    assert list(reader.feed(log(5))) == []


def test_a_heartbeat_shows_that_the_stream_has_lost_the_events_before_it() -> None:
    def heartbeat(last_seq: int) -> bytes:
        data = HeartbeatData(silent_ms=15_000.0, last_seq=last_seq, tool_use_ids=[])
        return encode(Heartbeat(v=1, ts=1.0, data=data, **ID))

    reader = EventReader()
    assert [type(item) for item in reader.feed(log(1) + heartbeat(1))] == [Log, Heartbeat]
    assert list(reader.feed(heartbeat(3) + log(4))) == [Gap(4)]


def test_live_text_has_no_number_and_passes() -> None:
    live = encode(TextDelta(v=1, ts=1.0, data=TextDeltaData(text="he"), **ID))
    assert events_of(list(EventReader().feed(live + log(1)))) == [None, 1]


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(lambda noise: noise.replace(b"\n", b"") + b"\n"),
        st.just(b'{"type":"end"}\n'),
        st.just(raw(seq=None, data={})),
        st.none(),
    ),
    max_size=30,
)


@given(lines=LINES, cuts=st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=20))
def test_good_events_arrive_whatever_stands_between_them_and_however_they_are_cut(
    lines: list[bytes | None], cuts: list[int]
) -> None:
    count, stream = 0, b""
    for line in lines:
        if line is None:
            count += 1
            stream += log(count, "\u2028 \x00 🙂 \\n")
        else:
            stream += line
    reader, items, position, n = EventReader(), list[AnyEvent | Fault | Gap](), 0, 0
    while position < len(stream):
        size = cuts[n % len(cuts)]
        items += reader.feed(stream[position : position + size])
        position, n = position + size, n + 1
    assert events_of(items) == list(range(1, count + 1))
