"""Lines are reassembled from chunks of any size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_runner.contract.lines import LineFramer, Oversized

LIMIT = 20
STREAMS = st.lists(st.binary(max_size=30) | st.sampled_from([b"\n", b"\n\n", b"\r\n", "\u2028\x85".encode()])).map(
    b"".join
)


def frame(chunks: list[bytes]) -> list[bytes | Oversized]:
    framer = LineFramer(LIMIT)
    lines = [line for chunk in chunks for line in framer.feed(chunk)]
    rest = framer.flush()
    return lines if rest is None else [*lines, rest]


def expected(stream: bytes) -> list[bytes | Oversized]:
    *lines, rest = stream.split(b"\n")
    found = [*lines, rest] if rest else lines
    return [line if len(line) <= LIMIT else Oversized(len(line)) for line in found]


@given(STREAMS, st.data())
def test_any_chunking_gives_the_same_lines(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert frame(chunks) == expected(stream)
    assert frame([stream[n : n + 1] for n in range(len(stream))]) == expected(stream)


def test_only_a_line_feed_ends_a_line() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\r".encode()
    assert list(LineFramer(100).feed(text + b"\n" + b"next")) == [text]


def test_a_line_that_is_too_long_is_thrown_away_and_the_next_one_is_whole() -> None:
    framer = LineFramer(LIMIT)
    for _ in range(1000):
        assert list(framer.feed(b"x" * 1000)) == []
    assert list(framer.feed(b"x\nnext\n")) == [Oversized(1_000_001), b"next"]
    assert framer.flush() is None
