"""The stream of one reader from a real store and a feed: no event is lost or duplicated, and gaps are reported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import pytest

from host_client.service import _feed as feeds
from host_client.service._feed import Feed, Frame
from host_client.service._sse import HEARTBEAT, PIECE, EventStream, Pace, Reader, frame
from host_client.store._sqlite import SqliteStore
from host_client.store.base import SessionState
from tests.store.records import ME, ROOT, append, close, created, texts

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60.0
PACE = Pace(heartbeat=WAIT_SECONDS)


class Scene:
    """The log and the feed of a session, with its owner's writes."""

    def __init__(self, store: SqliteStore, state: SessionState) -> None:
        self.store = store
        self.state = state
        self.feed = Feed()

    async def write(self, count: int = 1, *, shown: bool = True) -> None:
        """Append events to the log and, if ``shown``, to the readers' feed."""
        first = self.state.last_event_id + 1
        self.state = await append(self.store, self.state, count)
        if shown:
            for number, data in enumerate(texts(first, self.state.last_event_id), first):
                self.feed.add(Frame(number, frame(data, number)))

    def reader(self, after: int = 0, pace: Pace = PACE) -> Reader:
        return Reader(self.feed, self.store, "s-1", ROOT, after, pace)


@pytest.fixture
async def scene(store: SqliteStore) -> Scene:
    return Scene(store, await created(store))


def sent(data: bytes) -> list[tuple[int | None, Any]]:
    """Return number and data of each event in a stream, without comments."""
    found: list[tuple[int | None, Any]] = []
    for block in data.split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":") and line)
        if b"data" in fields:
            found.append((int(fields[b"id"]) if b"id" in fields else None, json.loads(fields[b"data"])))
    return found


async def until(chunks: AsyncIterator[bytes], count: int) -> list[tuple[int | None, Any]]:
    """Read until the stream has had this number of events; return them."""
    data = b""
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in chunks:
            data += chunk
            if len(sent(data)) >= count:
                break
    return sent(data)


def numbers(events: list[tuple[int | None, Any]]) -> list[int | None]:
    return [number for number, _ in events]


async def test_a_reader_is_sent_the_log_and_then_what_comes_each_once(scene: Scene) -> None:
    await scene.write(3)
    chunks = scene.reader().chunks()
    assert numbers(await until(chunks, 3)) == [1, 2, 3]
    await scene.write(2)
    assert numbers(await until(chunks, 2)) == [4, 5]
    await chunks.aclose()


async def test_what_comes_while_the_log_is_replayed_is_sent_once(scene: Scene) -> None:
    await scene.write(3)
    reader = scene.reader()  # later writes are in the log and in this reader's queue
    await scene.write(2)
    chunks = reader.chunks()
    await scene.write(1)
    assert numbers(await until(chunks, 6)) == [1, 2, 3, 4, 5, 6]
    await scene.write(1)
    assert numbers(await until(chunks, 1)) == [7]
    await chunks.aclose()


async def test_a_reader_that_comes_back_goes_on_after_its_number(scene: Scene) -> None:
    await scene.write(5)
    chunks = scene.reader(after=3).chunks()
    assert numbers(await until(chunks, 2)) == [4, 5]
    await chunks.aclose()


async def test_what_the_feed_lacks_comes_from_the_log(scene: Scene) -> None:
    chunks = scene.reader().chunks()
    await scene.write(1)
    assert numbers(await until(chunks, 1)) == [1]
    await scene.write(2, shown=False)
    await scene.write(1)
    assert numbers(await until(chunks, 3)) == [2, 3, 4]
    await chunks.aclose()


async def test_what_is_no_longer_kept_is_told_and_not_skipped(scene: Scene) -> None:
    await scene.write(10)
    await scene.store.trim("s-1", 3)
    chunks = scene.reader(after=2).chunks()
    gap, *rest = await until(chunks, 4)
    assert (gap[0], gap[1]["type"], gap[1]["data"]) == (None, "gap", {"first": 3, "last": 7})
    assert numbers(rest) == [8, 9, 10]
    await chunks.aclose()


async def test_a_reader_that_lags_too_far_behind_is_told_and_can_come_back(scene: Scene) -> None:
    slow = scene.reader(pace=Pace(heartbeat=0.01))
    chunks = slow.chunks()
    async with asyncio.timeout(WAIT_SECONDS):
        while await anext(chunks) != HEARTBEAT:
            pass  # the reader has sent all events of the log
    await scene.write(1)
    assert numbers(await until(chunks, 1)) == [1]
    await scene.write(feeds.MAX_FRAMES + 1)
    async with asyncio.timeout(WAIT_SECONDS):
        last = sent(b"".join([chunk async for chunk in chunks]))
    slow.close()
    assert [(event["type"], event["data"]["after"]) for _, event in last] == [("dropped", 1)]
    again = scene.reader(after=1).chunks()
    assert numbers(await until(again, feeds.MAX_FRAMES + 1)) == list(range(2, feeds.MAX_FRAMES + 3))
    await again.aclose()


async def test_a_long_replay_is_no_lag(scene: Scene) -> None:
    await scene.write(3)
    chunks = scene.reader().chunks()
    assert numbers(await until(chunks, 3)) == [1, 2, 3]  # read from the log, not yet from the feed
    await scene.write(feeds.MAX_FRAMES + 1)
    assert numbers(await until(chunks, feeds.MAX_FRAMES + 1)) == list(range(4, feeds.MAX_FRAMES + 5))
    await scene.write(1)
    assert numbers(await until(chunks, 1)) == [feeds.MAX_FRAMES + 5]
    await chunks.aclose()


async def test_a_quiet_session_is_a_heartbeat(scene: Scene) -> None:
    chunks = scene.reader(pace=Pace(heartbeat=0.01)).chunks()
    async with asyncio.timeout(WAIT_SECONDS):
        await anext(chunks)
        assert await anext(chunks) == HEARTBEAT
        assert await anext(chunks) == HEARTBEAT
    await chunks.aclose()


async def test_the_stream_of_a_closed_session_ends(scene: Scene) -> None:
    await scene.write(2)
    scene.state = await close(scene.store, "s-1", scene.state, 1.0)
    async with asyncio.timeout(WAIT_SECONDS):
        assert numbers(sent(b"".join([chunk async for chunk in scene.reader().chunks()]))) == [1, 2]


async def test_a_session_that_is_closed_ends_its_readers_streams(scene: Scene) -> None:
    chunks = scene.reader().chunks()
    await scene.write(1)
    assert numbers(await until(chunks, 1)) == [1]
    scene.state = await close(scene.store, "s-1", await append(scene.store, scene.state), 1.0)
    scene.feed.add(Frame(2, frame(b'{"type":"closed"}', 2), is_last=True))
    async with asyncio.timeout(WAIT_SECONDS):
        assert numbers(sent(b"".join([chunk async for chunk in chunks]))) == [2]


Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_go_on(scene: Scene) -> None:
    await scene.write(3)
    ends: list[str] = []
    taken = bytearray()
    gone = asyncio.Event()
    others = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def stuck(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def quick(message: MutableMapping[str, Any]) -> None:
        taken.extend(message.get("body", b""))
        if numbers(sent(bytes(taken))) == [1, 2, 3, 4]:
            others.set()

    def streamed(send: Send, patience: float) -> asyncio.Task[None]:
        stream = EventStream(scene.reader(), headers={}, patience=patience, on_end=ends.append)
        return asyncio.create_task(stream({"type": "http"}, receive, send))

    slow, fine = streamed(stuck, 0.01), streamed(quick, WAIT_SECONDS)
    async with asyncio.timeout(WAIT_SECONDS):
        await slow
        await scene.write(1)
        await others.wait()
        gone.set()
        await fine
    assert ends == ["slow", "gone"]


async def test_any_number_of_readers_are_sent_the_same(scene: Scene) -> None:
    every = [scene.reader().chunks() for _ in range(200)]
    waiting = [asyncio.create_task(until(chunks, 50)) for chunks in every]
    for _ in range(10):
        await scene.write(5)
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_SECONDS):
        assert {tuple(numbers(await each)) for each in waiting} == {tuple(range(1, 51))}
    for chunks in every:
        await chunks.aclose()


async def test_what_is_written_for_a_reader_at_once_is_small(scene: Scene) -> None:
    large = [b'"%b"' % (b"x" * size) for size in (100_000, 100_000, 100_000, 2 * PIECE, 10)]

    async def write() -> None:
        first = scene.state.last_event_id + 1
        state = msgspec.structs.replace(scene.state, last_event_id=first + len(large) - 1)
        await scene.store.append("s-1", ME, large, state)
        scene.state = state
        for number, data in enumerate(large, first):
            scene.feed.add(Frame(number, frame(data, number)))

    await write()
    chunks, taken = scene.reader().chunks(), list[bytes]()
    async with asyncio.timeout(WAIT_SECONDS):
        while b"".join(taken).count(b"\n\n") <= len(large):  # one more: the stream begins with `retry`
            taken.append(await anext(chunks))
        await write()  # these come from the feed
        while b"".join(taken).count(b"\n\n") <= 2 * len(large):
            taken.append(await anext(chunks))
    assert numbers(sent(b"".join(taken))) == list(range(1, 2 * len(large) + 1))
    assert max(map(len, taken)) <= PIECE
    await chunks.aclose()
