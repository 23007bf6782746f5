"""The stdout writer does not wait for its reader, and serves a slow reader from the journal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runner._journal import Journal
from agent_runner._wire import QUEUE_BYTES, StdoutWriter

PIPE = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[PIPE]:
    """Make a pipe's reading and writing end; the writer closes the latter."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


@pytest.fixture
def journal() -> Iterator[Journal]:
    this = Journal(None)
    yield this
    this.close()


class Reader:
    """Reads to the end of the stream in a thread, from a moment that the test chooses."""

    def __init__(self, fd: int) -> None:
        self._chunks: list[bytes] = []
        self._fd = fd
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self._fd, 65536):
            with self._came:
                self._chunks.append(chunk)
                self._came.notify_all()

    def until(self, size: int) -> None:
        """Wait until this number of bytes has arrived."""
        with self._came:
            assert self._came.wait_for(lambda: sum(map(len, self._chunks)) >= size, timeout=30)

    def all(self) -> bytes:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        return b"".join(self._chunks)


def line(n: int, size: int = 1000) -> bytes:
    return f"{n:08}".encode() + b"x" * (size - 9) + b"\n"


def put(outlet: StdoutWriter, journal: Journal, data: bytes) -> None:
    outlet.put(data, journal.append(data))


def test_lines_arrive_in_order_and_the_close_waits_for_them(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    reader = Reader(pipe[0])
    lines = [line(n) for n in range(500)]
    for each in lines:
        put(outlet, journal, each)
    assert outlet.close()
    assert reader.all() == b"".join(lines)


def test_a_slow_reader_is_fed_from_the_journal_without_loss_or_duplicates(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    lines = [line(n, size) for n, size in enumerate((700, 90_000, 12, 300_000) * 30)]
    assert sum(map(len, lines)) > 10 * QUEUE_BYTES
    for each in lines:  # nobody reads: this must not block
        put(outlet, journal, each)
    reader = Reader(pipe[0])
    assert outlet.close()
    assert reader.all() == b"".join(lines)
    assert outlet.dropped == 0


def test_a_line_read_from_the_journal_before_it_is_handed_over_is_sent_once(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    lines = [line(n, 50_000) for n in range(60)]
    for each in lines:
        put(outlet, journal, each)
    early = [line(60), line(61)]
    offsets = [journal.append(each) for each in early]
    reader = Reader(pipe[0])
    reader.until(journal.size)  # it has caught up with the journal
    for each, offset in zip(early, offsets, strict=True):
        outlet.put(each, offset)
    put(outlet, journal, line(62))
    assert outlet.close()
    assert reader.all() == b"".join([*lines, *early, line(62)])


def test_a_reader_that_falls_behind_again_and_again_gets_each_line_once(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    turn = threading.Semaphore(0)
    received: list[bytes] = []

    def read() -> None:
        while True:
            turn.acquire()
            chunk = os.read(pipe[0], 200_000)
            if not chunk:
                return
            received.append(chunk)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    lines = [line(n, 50_000) for n in range(200)]
    for n, each in enumerate(lines):
        put(outlet, journal, each)
        if n % 3 == 0:
            turn.release()
    for _ in range(10_000):
        turn.release()
    assert outlet.close()
    thread.join(timeout=30)
    assert b"".join(received) == b"".join(lines)


def test_live_lines_are_dropped_for_a_slow_reader_and_numbered_ones_are_not(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    for n in range(3000):
        put(outlet, journal, line(n))
        outlet.put(b"live\n", None, live=True)
    reader = Reader(pipe[0])
    assert outlet.close()
    got = reader.all().split(b"\n")
    assert [each for each in got if each not in (b"live", b"")] == [line(n)[:-1] for n in range(3000)]
    assert 0 < got.count(b"live") < 3000


def test_a_reader_that_is_gone_does_not_matter(pipe: PIPE, journal: Journal) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    outlet = StdoutWriter(writer, journal)
    for n in range(100):
        put(outlet, journal, line(n))
    assert not outlet.close()
    assert journal.size == 100 * 1000
    os.close(pipe[1])


def test_a_reader_that_reads_nothing_is_left_in_the_end(pipe: PIPE, journal: Journal) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    for n in range(200):
        put(outlet, journal, line(n))
    assert not outlet.close()


def test_without_a_journal_memory_is_bounded_and_what_is_dropped_is_counted(pipe: PIPE) -> None:
    outlet = StdoutWriter(pipe[1], None)
    lines = [line(n, QUEUE_BYTES) for n in range(70)]
    for each in lines:
        outlet.put(each, None)
    assert outlet.dropped > 0
    reader = Reader(pipe[0])
    assert outlet.close()
    got = reader.all()
    assert got == b"".join(lines[: len(got) // QUEUE_BYTES])
    assert len(got) // QUEUE_BYTES + outlet.dropped == 70


def test_when_the_journal_fails_while_the_reader_is_slow_the_rest_comes_from_memory(
    pipe: PIPE, journal: Journal
) -> None:
    outlet = StdoutWriter(pipe[1], journal)
    lines = [line(n, 50_000) for n in range(100)]
    for each in lines[:60]:
        put(outlet, journal, each)
    for each in lines[60:]:
        outlet.put(each, None)  # not in the journal any more
    reader = Reader(pipe[0])
    assert outlet.close()
    assert reader.all() == b"".join(lines)


def test_descriptor_1_belongs_to_events_alone() -> None:
    code = """
import os, subprocess, sys
from agent_runner._wire import claim_stdio
stdin, stdout = claim_stdio()
print("stray print")
os.write(1, b"stray write\\n")
subprocess.run(["echo", "stray child"], check=True)
assert os.read(0, 10) == b""
os.write(stdout, os.read(stdin, 100))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], input=b"event\n", capture_output=True, cwd=root, timeout=60)
    assert done.stdout == b"event\n"
    assert sorted(done.stderr.split(b"\n")) == [b"", b"stray child", b"stray print", b"stray write"]
