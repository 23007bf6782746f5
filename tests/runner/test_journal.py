"""The journal file is appended to, locked and followed."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runner._journal import Journal, JournalError, RunnerGoneError, follow
from agent_runner.contract.protocol import EndData, LogData, encode, event_of


def event(seq: int, *, end: bool = False, text: str = "x") -> bytes:
    data = EndData(reason="completed", exit_code=0) if end else LogData(stream="runner", text=text)
    return encode(event_of(data, seq=seq, ts=1.0, trace_id="a" * 32, span_id="b" * 16))


def test_a_follower_reads_what_was_written_after_a_number_to_the_end(tmp_path: Path) -> None:
    lines = [event(n, end=n == 5, text="\u2028" * n) for n in range(1, 6)]
    path = tmp_path / "journal"
    path.write_bytes(b"".join(lines))
    for after in range(6):
        assert list(follow(str(path), after)) == lines[after:]


def test_a_follower_waits_for_a_writer_that_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    got: list[bytes] = []
    first = threading.Event()

    def read() -> None:
        for line in follow(path, 0):
            got.append(line)
            first.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    journal.append(event(1))
    assert first.wait(30)
    half = event(2, end=True)
    # A line that comes in two writes is one line.
    journal.append(half[:20])
    journal.append(half[20:])
    thread.join(timeout=30)
    assert got == [event(1), half]
    journal.close()


def test_a_follower_of_a_dead_writer_gets_its_whole_lines_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.append(event(1))
    journal.append(event(2)[:-10])
    journal.close()
    reader = follow(str(path), 0)
    assert next(reader) == event(1)
    with pytest.raises(RunnerGoneError):
        next(reader)


def test_a_journal_is_nobody_elses_and_new(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    with pytest.raises(JournalError, match="in use by another runner"):
        Journal(path)
    journal.append(b"{}\n")
    journal.close()
    with pytest.raises(JournalError, match="holds another run's events"):
        Journal(path)
    with pytest.raises(JournalError, match="No such file"):
        Journal(str(tmp_path / "no" / "journal"))
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_a_temporary_journal_is_read_back_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    journal = Journal(None)
    assert [journal.append(b"one\n"), journal.append(b"two\n")] == [0, 4]
    assert journal.read(0) == b"one\ntwo\n"
    assert journal.read(4) == b"two\n"
    assert journal.read(8) == b""
    assert list(tmp_path.iterdir()) == []
    journal.close()


def test_a_journal_that_fails_once_takes_no_more_and_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    assert journal.append(event(1)) == 0
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process may grow beyond that: the second line is written in part, then fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(event(1)) + 5, hard))
    try:
        assert journal.append(event(2)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert journal.error == "File too large"
    assert journal.append(event(3)) is None
    assert path.read_bytes() == event(1)
    journal.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), max_size=12), st.integers(0, 14), st.binary(max_size=10))
def test_whatever_was_written_is_followed_once_each(
    tmp_path: Path, texts: list[str], after: int, garbage: bytes
) -> None:
    lines = [event(n, text=text) for n, text in enumerate(texts, 1)]
    lines.append(event(len(lines) + 1, end=True))
    path = tmp_path / "journal"
    # A line that is no event, as a broken writer may leave it, is passed over.
    path.write_bytes(garbage.replace(b"\n", b"") + b"\n" + b"".join(lines))
    assert list(follow(str(path), after)) == lines[after:]
