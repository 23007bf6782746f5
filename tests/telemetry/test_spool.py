"""The spool's spans survive processes, are limited in size, and reach each destination that needs them."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from host_client.telemetry.batch import Batch
from host_client.telemetry.export.spool import Parcel, Spool
from tests.telemetry.receiver import WAIT_SECONDS

TRACE, OTHER = "a" * 32, "b" * 32
ROOT = Path(__file__).parents[2]
BOTH = {"one": True, "two": True}


def make(directory: Path | None, destinations: dict[str, bool] | None = None, **options: float) -> Spool:
    spool = Spool(directory, **options)  # pyright: ignore[reportArgumentType]
    spool.register(BOTH if destinations is None else destinations)
    spool.keep()
    return spool


def text(words: str, spans: int = 1) -> Batch:
    return Batch(words.encode(), spans)


def taken(spool: Spool, destination: str = "one") -> list[str]:
    return [parcel.batch.body.decode() for parcel in take(spool, destination)]


def take(spool: Spool, destination: str = "one") -> list[Parcel]:
    parcels: list[Parcel] = []
    while more := spool.take(destination, max_spans=1000, max_bytes=2**20):
        spool.acknowledge(destination, more)
        parcels += more
    return parcels


def databases(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.db"))


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.fixture(params=["disk", "memory"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spool]:
    made = make(tmp_path / "spool" if request.param == "disk" else None)
    yield made
    made.close()


def test_what_is_held_is_due_only_when_it_is_released(spool: Spool) -> None:
    spool.hold(TRACE, [text("1", 3), text("2")])
    spool.hold(OTHER, [text("3")])
    assert spool.waiting() == {"one": 0, "two": 0}
    assert taken(spool) == []
    spool.release(TRACE, ("one", "two"))
    assert spool.waiting() == {"one": 4, "two": 4}
    assert taken(spool) == ["1", "2"]
    assert spool.waiting() == {"one": 0, "two": 4}
    assert taken(spool, "two") == ["1", "2"]


def test_what_is_discarded_never_comes(spool: Spool) -> None:
    spool.hold(TRACE, [text("1")])
    spool.discard(TRACE)
    spool.release(TRACE, ("one",))
    assert taken(spool) == []


def test_a_request_goes_to_each_destination_on_its_own(spool: Spool) -> None:
    spool.put([text("1")], ("one", "two"))
    spool.put([text("2")], ("two",))
    assert taken(spool) == ["1"]
    assert taken(spool, "two") == ["1", "2"]


def test_what_is_not_acknowledged_comes_again(spool: Spool) -> None:
    spool.put([text("1"), text("2")], ("one",))
    first = spool.take("one", max_spans=10, max_bytes=10)
    spool.put_back(first)
    assert taken(spool) == ["1", "2"]


def test_a_batch_has_limits_and_one_request_in_any_case(spool: Spool) -> None:
    spool.put([text("12345", 10), text("1", 2), text("2", 2), text("3", 2)], ("one",))
    sizes: list[list[str]] = []
    while parcels := spool.take("one", max_spans=4, max_bytes=4):
        sizes.append([parcel.batch.body.decode() for parcel in parcels])
        spool.acknowledge("one", parcels)
    assert sizes == [["12345"], ["1", "2"], ["3"]]


def test_pieces_take_the_place_of_a_request_for_one_destination(spool: Spool) -> None:
    spool.put([text("12", 2)], ("one", "two"))
    (parcel,) = spool.take("one", max_spans=10, max_bytes=10)
    pieces = spool.split("one", parcel, [text("1"), text("2")])
    assert [piece.batch.body for piece in pieces] == [b"1", b"2"]
    spool.put_back(pieces)
    assert spool.waiting() == {"one": 2, "two": 2}
    assert taken(spool) == ["1", "2"]
    assert taken(spool, "two") == ["12"]


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "spool"
    spool = make(directory)
    spool.put([text("1")], ("one",))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert len(list(directory.iterdir())) == 3  # the database, its write-ahead log, the lock
    spool.close()


def test_the_next_process_has_what_one_left_decided_or_not(tmp_path: Path) -> None:
    first = make(tmp_path, {"one": True, "console": False})
    first.put([text("1")], ("one", "console"))
    first.hold(TRACE, [text("undecided")])
    first.close()
    second = make(tmp_path, {"one": True, "console": False})
    assert taken(second) == ["1", "undecided"]
    assert taken(second, "console") == []  # the console's spans matter only to the process that made them
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_for_another_destination_waits_for_a_process_that_has_it(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.put([text("1")], ("one", "two"))
    first.hold(TRACE, [text("2")])
    first.close()
    second = make(tmp_path, {"one": True})
    assert taken(second) == ["1", "2"]
    second.close()
    third = make(tmp_path, {"two": True})
    assert taken(third, "two") == ["1", "2"]
    third.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_shared_is_let_go_of_and_not_written_to(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.put([text("1")], ("one", "two"))
    first.close()
    second = make(tmp_path, {"one": True})
    second.hold(TRACE, [text("of the second")])
    assert taken(second) == ["1"]
    third = make(tmp_path, {"two": True})  # while the second spool is open
    assert taken(third, "two") == ["1"]
    second.close()
    third.keep()
    assert taken(third, "two") == []
    third.close()
    last = make(tmp_path, {"one": True})
    assert taken(last) == ["of the second"]
    last.close()
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_on_one_directory_leave_each_other_alone(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    first.put([text("1")], ("one",))
    second.put([text("2")], ("one",))
    for spool in (first, second):
        spool.keep()
    assert (taken(first), taken(second)) == (["1"], ["2"])
    first.put([text("3")], ("one",))
    first.close()
    assert taken(second) == []
    second.keep()  # after the first was closed
    assert taken(second) == ["3"]
    second.close()
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from host_client.telemetry.batch import Batch
from host_client.telemetry.export.spool import Spool

spool = Spool(Path(sys.argv[1]))
spool.register({"one": True})
spool.keep()
for number in range(100):
    spool.hold(f"{number:032x}", [Batch(b"held %d" % number, 1)])
    spool.put([Batch(b"due %d" % number, 1)], ("one",))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_nothing_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    spool = make(tmp_path)
    assert taken(spool) == []
    process.kill()
    process.wait(WAIT_SECONDS)
    process.stdin.close()
    process.stdout.close()
    spool.keep()
    expected = {f"held {n}" for n in range(100)} | {f"due {n}" for n in range(100)}
    found = taken(spool)
    assert (set(found), len(found)) == (expected, 200)
    spool.close()


def test_short_runs_during_an_outage_share_a_file(tmp_path: Path) -> None:
    for number in range(20):
        spool = make(tmp_path)
        spool.put([text(str(number))], ("one",))
        spool.close()
    assert len(databases(tmp_path)) == 1
    spool = make(tmp_path)
    assert taken(spool) == [str(number) for number in range(20)]
    spool.close()


def test_on_disk_the_oldest_goes_first_and_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = 8 * 2**20
    spool = make(tmp_path, max_bytes=limit)
    for number in range(1000):
        spool.put([Batch(b"%06d" % number + b"x" * 20_000, 2)], ("one", "two"))
        assert size_of(tmp_path) <= limit
    dropped = spool.dropped()["one"]["spool_full"]
    assert dropped > 1000
    assert spool.waiting() == {"one": 2000 - dropped, "two": 2000 - dropped}
    assert spool.dropped()["two"] == spool.dropped()["one"]
    kept = [int(parcel.batch.body[:6]) for parcel in take(spool)]
    assert kept == list(range(dropped // 2, 1000))
    assert [record.getMessage() for record in caplog.records] == [
        "telemetry for one was dropped: spool_full",
        "telemetry for two was dropped: spool_full",
    ]
    take(spool, "two")
    spool.keep()
    assert size_of(tmp_path) < 2**20  # the disk space was released
    spool.close()


def test_what_is_on_its_way_is_not_dropped_under_it(tmp_path: Path) -> None:
    spool = make(tmp_path, max_bytes=4 * 2**20)
    spool.put([Batch(b"first", 1)], ("one",))
    on_its_way = spool.take("one", max_spans=1, max_bytes=1)
    for _ in range(500):
        spool.put([Batch(b"x" * 20_000, 1)], ("one",))
    before = spool.waiting()["one"]
    spool.acknowledge("one", on_its_way)
    assert spool.waiting()["one"] == before - 1
    assert spool.waiting()["one"] + spool.dropped()["one"]["spool_full"] == 500
    spool.close()


def test_undecided_traces_that_are_dropped_count_for_every_destination(tmp_path: Path) -> None:
    spool = make(tmp_path, max_bytes=2**20)
    for number in range(200):
        spool.hold(f"{number:032x}", [Batch(b"x" * 20_000, 1)])
    for number in range(200):
        spool.release(f"{number:032x}", ("one", "two"))
    for name in BOTH:
        assert spool.waiting()[name] + spool.dropped()[name]["spool_full"] == 200
    spool.close()


def test_without_a_directory_memory_is_bounded() -> None:
    spool = make(None, max_memory=2**20)
    for _ in range(500):
        spool.put([Batch(b"x" * 20_000, 1)], ("one",))
    waiting = spool.waiting()["one"]
    assert 10 < waiting <= 52
    assert spool.dropped()["one"] == {"memory_full": 500 - waiting}
    spool.close()


def test_what_is_too_old_is_dropped(tmp_path: Path) -> None:
    now = [1_000_000.0]
    spool = Spool(tmp_path, max_age=60.0, now=lambda: now[0])
    spool.register(BOTH)
    spool.put([text("old", 2)], ("one",))
    now[0] += 50
    spool.put([text("young")], ("one",))
    now[0] += 20
    spool.keep()
    assert spool.dropped() == {"one": {"too_old": 2}}
    assert taken(spool) == ["young"]
    spool.close()


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spans-1-x.db").write_bytes(b"nonsense" * 4096)
    spool = make(tmp_path)
    spool.put([text("1")], ("one",))
    assert taken(spool) == ["1"]
    assert spool.faults == {"corrupt": 1}
    assert spool.dropped() == {"one": {"corrupt": 1}, "two": {"corrupt": 1}}, "at least, as nothing can be read"
    assert (tmp_path / "spans-1-x.corrupt").exists()
    assert "is corrupt; it was renamed to spans-1-x.corrupt" in caplog.text
    spool.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".corrupt"]


def test_a_file_that_is_corrupt_within_is_set_aside_and_the_run_goes_on(tmp_path: Path) -> None:
    first = make(tmp_path)
    for number in range(50):
        first.put([Batch(b"%02d" % number + b"x" * 10_000, 2)], ("one",))
    first.close()
    (path,) = databases(tmp_path)
    spoil(path, 20)  # spares the roots of the tables, and the table of what is due
    spool = make(tmp_path)
    assert taken(spool) == []
    spool.put([text("new")], ("one",))
    assert taken(spool) == ["new"]
    assert spool.faults["corrupt"] == 1
    assert 50 < spool.dropped()["one"]["corrupt"] <= 100, "of a request that cannot be read, at least one"
    spool.close()


def spoil(path: Path, first: int) -> None:
    """Overwrite the pages of a database from the given one on."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(first * 4096)
        file.write(os.urandom(max(0, size - first * 4096)))


def test_all_spans_of_a_file_that_becomes_corrupt_in_use_are_counted(tmp_path: Path) -> None:
    spool = make(tmp_path)
    spool.hold(TRACE, [text("held", 3)])
    spool.hold(OTHER, [text("discarded", 7)])
    spool.discard(OTHER)
    for number in range(500):
        spool.put([Batch(b"%03d" % number + b"x" * 10_000, 1)], ("one",))
    (path,) = databases(tmp_path)
    for file in (path, Path(f"{path}-wal")):
        spoil(file, 1)
    found = len(take(spool))  # pages in SQLite's memory are intact
    assert spool.faults == {"corrupt": 1}
    assert spool.dropped() == {"one": {"corrupt": 503 - found}, "two": {"corrupt": 3}}
    spool.put([text("new")], ("one",))
    assert taken(spool) == ["new"]
    spool.close()


def test_files_set_aside_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"spans-{number}.db").write_bytes(b"nonsense" * 4096)
    spool = make(tmp_path)
    assert spool.faults == {"corrupt": 6}
    assert len(list(tmp_path.iterdir())) == 3
    spool.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spans-1-x.db"
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    spool = make(tmp_path)
    assert (taken(spool), spool.faults) == ([], {})
    spool.close()
    assert path.exists()


def test_where_no_directory_can_be_made_memory_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    spool = make(tmp_path / "file" / "spool")
    spool.hold(TRACE, [text("1")])
    spool.put([text("2")], ("one",))
    spool.release(TRACE, ("one",))
    assert taken(spool) == ["1", "2"]
    assert spool.faults["disk"] > 0
    assert caplog.text.count("cannot be written") == 1
    spool.close()


@contextmanager
def few_pages() -> Generator[str]:
    """Limit SQLite's files to 128 pages of 4 KiB; yield SQLite's message for a full disk."""
    connect = sqlite3.connect

    def limited(path: str, **options: Any) -> sqlite3.Connection:
        connection = connect(path, **options)
        if path != ":memory:":
            connection.execute("PRAGMA max_page_count = 128")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sqlite3.connect", limited)
        yield "disk is full"


@contextmanager
def short_files() -> Generator[str]:
    """Limit all files of this process to 512 KiB, also SQLite's log; yield SQLite's message for failed writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, hard))
    try:
        yield "disk I/O error"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", [few_pages, short_files])
def test_a_full_disk_loses_nothing_while_memory_has_room(
    full: Callable[[], AbstractContextManager[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with full() as why:
        spool = make(tmp_path / "spool")
        for number in range(100):
            spool.hold(f"{number:032x}", [Batch(b"%03d" % number + b"x" * 20_000, 1)])
        for number in range(100):
            spool.release(f"{number:032x}", ("one",))
        assert spool.faults["disk"] > 0
        assert caplog.text.count("cannot be written") == 1
        assert why in caplog.text
        found = [int(parcel.batch.body[:3]) for parcel in take(spool)]
        assert sorted(found) == list(range(100))
        assert (spool.waiting(), spool.dropped()) == ({"one": 0, "two": 0}, {})
        spool.close()
    again = make(tmp_path / "spool")
    left = [int(words[:3]) for words in taken(again)]
    assert len(left) == len(set(left)) < 50  # spans whose removal a full disk prevented are sent once more
    again.close()
    last = make(tmp_path / "spool")
    assert taken(last) == []
    last.close()


def test_what_no_disk_took_is_told_as_lost_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    spool = make(None)
    spool.put([text("1", 3)], ("one",))
    spool.close()
    spool.put([text("2")], ("one",))  # after the spool was closed
    spool.hold(TRACE, [text("3")])
    assert spool.dropped() == {"one": {"closed": 5}, "two": {"closed": 1}}
    assert spool.waiting() == {"one": 0, "two": 0}
    assert (taken(spool), spool.faults) == ([], {})
    assert "telemetry for one was dropped: closed" in caplog.text


def test_what_no_later_process_can_deliver_is_told_as_lost_at_the_end(tmp_path: Path) -> None:
    spool = make(tmp_path, {"console": False, "one": True})
    spool.put([text("1", 2)], ("console", "one"))
    spool.close()
    assert spool.dropped() == {"console": {"closed": 2}}


def test_without_destinations_nothing_is_kept(tmp_path: Path) -> None:
    spool = make(tmp_path, {})
    spool.hold(TRACE, [text("1")])
    spool.release(TRACE, ())
    spool.put([text("2")], ())
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_released_to_nobody_is_gone(spool: Spool) -> None:
    spool.hold(TRACE, [text("1")])
    spool.release(TRACE, ())
    spool.release(TRACE, ("one",))
    assert taken(spool) == []
