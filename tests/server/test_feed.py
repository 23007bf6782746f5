from __future__ import annotations

import asyncio

import pytest

from host_client.service import _feed as feeds
from host_client.service._feed import Feed, Frame, pack, unpack

pytestmark = pytest.mark.anyio


def frame(number: int | None, data: bytes = b"x", after: int = 0) -> Frame:
    return Frame(number, data, after=after)


async def test_a_reader_gets_what_came_since_it_was_counted_in() -> None:
    feed = Feed()
    feed.add(frame(1))
    position = feed.enter()
    feed.add(frame(2, b"two"))
    feed.add(frame(None, b"live", after=2))
    batch = feed.since(position)
    assert batch is not None
    assert (batch.frames, batch.body) == ((frame(2, b"two"), frame(None, b"live", after=2)), b"twolive")
    assert feed.since(batch.position) == ((), batch.position, b"")


async def test_readers_at_the_same_place_share_the_bytes() -> None:
    feed = Feed()
    first, second = feed.enter(), feed.enter()
    feed.add(frame(1, b"one"))
    assert feed.since(first) is feed.since(second)


async def test_an_event_that_came_before_is_left_out() -> None:
    feed = Feed()
    position = feed.enter()
    for number in (1, 2, 2, 1, 3):
        feed.add(frame(number))
    batch = feed.since(position)
    assert batch is not None
    assert [each.id for each in batch.frames] == [1, 2, 3]


async def test_live_text_that_comes_after_the_whole_text_is_left_out() -> None:
    feed = Feed(4)
    position = feed.enter()
    for each in (frame(None, b"a", after=4), frame(5), frame(None, b"b", after=4), frame(None, b"c", after=5)):
        feed.add(unpack(pack(each)) if each.id is None else each)
    batch = feed.since(position)
    assert batch is not None and batch.body == b"axc"


async def test_a_feed_without_readers_keeps_nothing() -> None:
    feed = Feed()
    feed.enter()
    feed.add(frame(1))
    feed.leave()
    feed.add(frame(2))
    position = feed.enter()
    assert feed.last_id == 2
    assert feed.since(position) == ((), position, b"")


@pytest.mark.parametrize(
    ("count", "size"),
    [(feeds.MAX_FRAMES + 1, 1), (10, feeds.MAX_BYTES // 5)],
    ids=["too many frames", "too many bytes"],
)
async def test_a_reader_that_lags_too_far_behind_is_told_so(count: int, size: int) -> None:
    feed = Feed()
    slow = feed.enter()
    quick = feed.enter()
    for number in range(1, count + 1):
        feed.add(frame(number, b"x" * size))
        batch = feed.since(quick)
        assert batch is not None
        quick = batch.position
    assert feed.since(slow) is None


async def test_one_frame_larger_than_all_that_is_kept_still_arrives() -> None:
    feed = Feed()
    position = feed.enter()
    feed.add(frame(1, b"x" * (feeds.MAX_BYTES + 1)))
    batch = feed.since(position)
    assert batch is not None and len(batch.body) == feeds.MAX_BYTES + 1


async def test_a_reader_waits_until_there_is_more() -> None:
    feed = Feed()
    position = feed.enter()
    assert not await feed.grown(position, 0.0)
    waiting = asyncio.ensure_future(feed.grown(position, 10.0))
    await asyncio.sleep(0)
    feed.add(frame(1))
    assert await waiting
    assert await feed.grown(position, 0.0)


async def test_nobody_is_woken_for_nothing() -> None:
    feed = Feed(4)
    position = feed.enter()
    waiting = asyncio.ensure_future(feed.grown(position, 60.0))
    for frames in ((), (frame(4), frame(3)), (frame(None, b"late", after=3),)):
        feed.add(*frames)
        await asyncio.sleep(0)
        assert not waiting.done()
    feed.add(frame(4), frame(5))
    async with asyncio.timeout(60):
        assert await waiting


async def test_more_at_once_than_is_kept_leaves_the_newest() -> None:
    feed = Feed()
    slow = feed.enter()
    feed.add(*(frame(number) for number in range(1, feeds.MAX_FRAMES + 3)))
    assert feed.since(slow) is None and feed.last_id == feeds.MAX_FRAMES + 2
    newest = feed.since(feed.position - feeds.MAX_FRAMES)
    assert newest is not None and [each.id for each in newest.frames] == list(range(3, feeds.MAX_FRAMES + 3))


async def test_each_reader_waits_for_its_own_time() -> None:
    feed = Feed()
    position = feed.enter()
    patient = asyncio.ensure_future(feed.grown(position, 60.0))
    hasty = asyncio.ensure_future(feed.grown(position, 0.01))
    async with asyncio.timeout(60):
        assert not await hasty
        assert not await feed.grown(position, 0.01)
    assert not patient.done()
    feed.add(frame(1))
    assert await patient
