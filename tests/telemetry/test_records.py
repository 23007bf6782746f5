"""The span records: what is due in the spool is never sent again, and no fault of the records loses a span."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_runner.contract.trace_context import TraceContext
from host_client.telemetry import Root, SessionTrace, Telemetry, Who
from host_client.telemetry.batch import Batch
from host_client.telemetry.export import _records as records_module
from host_client.telemetry.export import delivery as delivery_module
from host_client.telemetry.export import spool as spool_module
from host_client.telemetry.export._records import SpanRecords
from host_client.telemetry.export._spool_file import remove, set_aside
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations import Destination
from host_client.telemetry.export.destinations.custom import Custom
from host_client.telemetry.export.destinations.otlp import otlp
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.export.spool import Spool
from host_client.telemetry.tail.sampling import SamplingConfig
from tests.support.disks import resize, small_disk
from tests.telemetry.receiver import WAIT_SECONDS, Receiver, batch, http_receiver, ids_of

ROOT = Path(__file__).parents[2]
HERE = ["one"]
"""The key of the only destination."""


def trace_of(number: int) -> str:
    return f"{number:032x}"


def ids(count: int, first: int = 1) -> list[str]:
    """Return the ids of the spans that `batch` makes."""
    return [f"{number:016x}" for number in range(first, first + count)]


def databases(directory: Path) -> list[Path]:
    return list(directory.glob(records_module.NAME.format("*")))


def database(directory: Path) -> Path:
    """Return the only database of records in a directory."""
    (path,) = databases(directory)
    return path


def spool_in(directory: Path, **destinations: bool) -> Spool:
    spool = Spool(directory)
    spool.register(destinations or {"one": True})
    spool.keep()
    return spool


def known(spool: Spool, trace: int = 1, count: int = 5) -> set[str]:
    return spool.recorded(trace_of(trace), ids(count))


def due(spool: Spool, destination: str = "one") -> int:
    """Return the number of spans that are due."""
    return spool.waiting()[destination]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[SpanRecords]:
    with closing(SpanRecords(tmp_path, Counter())) as made:
        yield made


# -- records ----------------------------------------------------------------------------------------------


def test_a_span_is_known_to_every_process_from_the_moment_it_is_stored(tmp_path: Path) -> None:
    first, second = spool_in(tmp_path), spool_in(tmp_path)
    assert known(second) == set()
    first.put([batch(2)], HERE)
    assert known(second) == known(first) == set(ids(2))
    assert known(second, trace=2) == set()
    first.close()
    assert known(second) == set(ids(2))
    second.close()


def test_a_span_stays_known_when_it_has_been_sent(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.put([batch(2)], HERE)
    spool.acknowledge("one", spool.take("one", max_spans=10, max_bytes=10))
    spool.close()
    assert set(tmp_path.iterdir()) == {database(tmp_path), tmp_path / records_module.LOCK}
    following = spool_in(tmp_path)
    assert known(following) == set(ids(2))
    following.close()


def test_a_held_span_is_known_from_the_moment_its_trace_is_kept(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    for trace in (1, 2):
        spool.hold(trace_of(trace), [batch(2, trace=trace)])
        assert known(spool, trace) == set()
    spool.discard(trace_of(1))
    spool.release(trace_of(2), HERE)
    assert (known(spool), known(spool, trace=2)) == (set(), set(ids(2)))
    spool.close()


def test_spans_that_are_not_due_to_all_destinations_are_not_recorded(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, one=True, two=True)
    spool.put([batch(2)], HERE)
    assert known(spool) == set()
    spool.close()


def test_other_destinations_know_no_span(tmp_path: Path) -> None:
    first, second = spool_in(tmp_path, one=True), spool_in(tmp_path, one=True, two=True)
    first.put([batch(2)], HERE)
    assert known(second) == set()
    second.put([batch(2)], ("one", "two"))
    assert known(second) == set(ids(2))
    third = spool_in(tmp_path, two=True, console=False, one=True)  # one that no other process could deliver to
    assert known(third) == set(ids(2))
    for spool in (first, second, third):
        spool.close()


def test_spans_that_only_their_own_process_can_deliver_are_not_recorded(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, console=False)
    spool.put([batch(2)], ("console",))
    assert databases(tmp_path) == []
    spool.close()


def test_without_a_directory_no_span_is_known() -> None:
    spool = Spool(None)
    spool.register({"one": True})
    spool.put([batch(2)], HERE)
    assert known(spool) == set()
    spool.close()


def test_records_of_processes_that_begin_at_the_same_time_are_all_found(tmp_path: Path) -> None:
    number = 6
    together = threading.Barrier(number)

    def begin(place: int) -> None:
        with closing(SpanRecords(tmp_path, Counter())) as records:
            together.wait()
            records.record(["otlp"], [batch(1, first=place + 1).body])

    for _ in range(20):
        with ThreadPoolExecutor(number) as threads:
            list(threads.map(begin, range(number)))
        with closing(SpanRecords(tmp_path, Counter())) as records:
            assert records.known(["otlp"], f"{1:032x}", ids(number)) == set(ids(number))
            records.forget_all()


def test_more_spans_than_one_query_takes_are_found(records: SpanRecords) -> None:
    records.record(HERE, [batch(1200).body])
    assert records.known(HERE, trace_of(1), ids(1300)) == set(ids(1200))


# -- processes that are killed -------------------------------------------------------------------------------

DIES = """
import os, signal, sys
from pathlib import Path
from host_client.telemetry.export._records import SpanRecords
from host_client.telemetry.export.spool import Spool
from tests.telemetry.receiver import batch

spool = Spool(Path(sys.argv[1]))
spool.register({"one": True})
spool.keep()
if sys.argv[2] == "put":
    spool.put([batch(2)], ("one",))
else:
    spool.hold(f"{1:032x}", [batch(2)])
SpanRecords.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the file has the spans, the records have not
if sys.argv[2] == "put":
    spool.put([batch(2, first=3)], ("one",))
else:
    spool.hold(f"{1:032x}", [batch(2, first=3)])
    if sys.argv[2] == "release":
        spool.release(f"{1:032x}", ("one",))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(directory: Path, store: str) -> None:
    """Run a process that stores four spans of a trace and is killed before it records the last two of them.

    Held spans are not recorded before they are released.
    """
    ended = subprocess.run([sys.executable, "-c", DIES, str(directory), store], cwd=ROOT, timeout=WAIT_SECONDS)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("store", ["put", "hold", "release"])
def test_what_a_killed_process_had_not_recorded_is_known_once_its_file_is_taken_over(
    tmp_path: Path, store: str
) -> None:
    killed(tmp_path, store)
    spool = Spool(tmp_path)
    spool.register({"one": True})
    assert known(spool) == set(ids(2) if store == "put" else ())
    assert spool.keep()
    assert known(spool) == set(ids(4))
    assert due(spool) == 4
    spool.close()


KEEPS = """
import os, signal, sys
from pathlib import Path
from host_client.telemetry.export._records import SpanRecords
from host_client.telemetry.export.spool import Spool

SpanRecords.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
spool = Spool(Path(sys.argv[1]))
spool.register({"one": True})
spool.keep()
"""


def test_a_process_killed_while_it_takes_a_file_over_leaves_it_to_the_next(tmp_path: Path) -> None:
    killed(tmp_path, "put")
    ended = subprocess.run([sys.executable, "-c", KEEPS, str(tmp_path)], cwd=ROOT, timeout=WAIT_SECONDS)
    assert ended.returncode == -signal.SIGKILL
    spool = spool_in(tmp_path)
    assert known(spool) == set(ids(4))
    assert due(spool) == 4
    spool.close()


ADOPTS = """
import sys
from pathlib import Path
from host_client.telemetry.export._records import SpanRecords
from host_client.telemetry.export.spool import Spool

record = SpanRecords.record

def slow(*arguments):
    print("adopting", flush=True)
    sys.stdin.readline()
    record(*arguments)

SpanRecords.record = slow
spool = Spool(Path(sys.argv[1]))
spool.register({"one": True})
spool.keep()
print("done", flush=True)
sys.stdin.readline()
"""


@contextmanager
def adopting(directory: Path) -> Generator[subprocess.Popen[str]]:
    """Run a process that takes a file over and waits for a line before it records its spans."""
    command = [sys.executable, "-c", ADOPTS, str(directory)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "adopting\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def test_a_lookup_waits_for_the_records_of_a_process_that_takes_a_file_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting, sleep = threading.Event(), time.sleep

    def noted_sleep(seconds: float) -> None:
        is_waiting.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted_sleep)
    killed(tmp_path, "put")
    spool = Spool(tmp_path)
    spool.register({"one": True})
    with adopting(tmp_path) as process:
        assert known(spool) == set(ids(2))
        with ThreadPoolExecutor() as pool:
            looked = pool.submit(lambda: (spool.keep(), known(spool)))
            assert is_waiting.wait(WAIT_SECONDS)
            assert not looked.done()
            tell(process)
            assert looked.result(WAIT_SECONDS) == (True, set(ids(4)))
        assert due(spool) == 0
    spool.close()


def test_a_lookup_that_waits_for_too_long_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "ADOPTION_SECONDS", 0.1)
    killed(tmp_path, "put")
    spool = Spool(tmp_path)
    spool.register({"one": True})
    with adopting(tmp_path):
        assert not spool.keep()
        assert known(spool) == set(ids(2))
    assert spool.keep()
    assert known(spool) == set(ids(4))
    spool.close()


def test_spans_of_more_files_than_one_process_takes_over_are_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = [spool_in(tmp_path) for _ in range(4)]
    for number, each in enumerate(living, 1):
        each.put([batch(2, trace=number)], HERE)
    remove(database(tmp_path))  # as if each had been killed before it recorded anything
    for each in living:
        each.close()
    monkeypatch.setattr(spool_module, "MAX_FILES", 2)
    spool = spool_in(tmp_path)
    assert [known(spool, number) for number in range(1, 5)] == [set(ids(2))] * 4
    assert due(spool) == 4
    spool.close()


@pytest.mark.parametrize("store", ["put", "hold"])
def test_held_spans_of_a_file_that_is_not_taken_over_yet_are_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    killed(tmp_path, store)
    monkeypatch.setattr(spool_module, "MAX_FILES", 0)
    spool = spool_in(tmp_path)
    assert (known(spool), due(spool)) == (set(ids(4)), 0)
    monkeypatch.undo()
    spool.keep()
    assert (known(spool), due(spool)) == (set(ids(4)), 4)
    spool.close()


@pytest.mark.parametrize("store", ["put", "hold"])
@pytest.mark.parametrize(
    "later",
    [
        pytest.param([("one", "two"), ("one", "two")], id="added"),
        pytest.param([("two",), ("two",)], id="replaced"),
        pytest.param([("two",), ("one", "two")], id="passed over and added"),
        pytest.param([("two",), ("one",)], id="passed over"),
        pytest.param([(), ("two",)], id="removed"),
    ],
)
def test_every_destination_gets_every_span_when_destinations_change(
    tmp_path: Path, store: str, later: list[tuple[str, ...]]
) -> None:
    killed(tmp_path, store)
    *between, last = (dict.fromkeys(names, True) for names in later)
    for names in between:
        spool = Spool(tmp_path)
        spool.register(names)
        assert spool.keep()
        spool.close()  # as if it had been killed before it got any span of the session again
    spool = spool_in(tmp_path, **last)
    if missing := [int(span_id, 16) for span_id in ids(4) if span_id not in known(spool)]:
        spool.put([batch(1, first=number) for number in missing], last)
    for name in last:
        parcels = spool.take(name, max_spans=100, max_bytes=2**20)
        assert {span_id for parcel in parcels for _, span_id in ids_of(parcel.batch.body)} == set(ids(4))
    spool.close()


# -- faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"no database at all" * 1000, b""])
def test_corrupt_records_are_set_aside_and_begun_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = spool_in(tmp_path)
    first.put([batch(2)], HERE)
    first.close()
    damaged = database(tmp_path)
    damaged.write_bytes(damage)
    spool = spool_in(tmp_path)
    spool.put([batch(2, first=3)], HERE)
    assert due(spool) == 4  # no span is lost
    assert known(spool) >= set(ids(2, 3))
    assert spool.faults == {"corrupt": 1}
    assert caplog.text.count("are corrupt") == 1
    assert damaged.with_suffix(".corrupt").read_bytes() == damage
    assert database(tmp_path) != damaged
    spool.close()


def test_records_that_another_process_has_begun_anew_are_shared_again(tmp_path: Path) -> None:
    first, second = spool_in(tmp_path), spool_in(tmp_path)
    first.put([batch(1)], HERE)
    set_aside(database(tmp_path))
    second.put([batch(1, first=2)], HERE)
    first.put([batch(1, first=3)], HERE)
    assert known(first) == known(second) == set(ids(2, 2))
    first.close()
    second.close()


def test_after_the_loss_of_a_corrupt_file_no_span_is_known(tmp_path: Path) -> None:
    first = spool_in(tmp_path)
    first.put([batch(2)], HERE)
    first.close()
    (file,) = tmp_path.glob("*.db")
    file.write_bytes(b"no database" * 1000)
    spool = spool_in(tmp_path)
    assert (known(spool), due(spool)) == (set(), 0)
    spool.close()


def test_records_of_a_later_version_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = spool_in(tmp_path)
    first.put([batch(2)], HERE)
    first.close()
    with closing(sqlite3.connect(database(tmp_path))) as db:
        db.execute(f"PRAGMA user_version = {records_module.VERSION + 1}")
    spool = spool_in(tmp_path)
    spool.put([batch(2, first=3)], HERE)
    assert (known(spool), due(spool), spool.faults) == (set(), 4, {})
    assert caplog.text.count("later version") == 1
    spool.close()


def test_records_that_another_process_locks_for_too_long_are_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path)
    spool.put([batch(1)], HERE)
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        spool.put([batch(1, first=2)], HERE)
        spool.put([batch(1, first=3)], HERE)
    assert due(spool) == 3
    assert spool.faults == {"records": 2}
    assert caplog.text.count("spans may be sent again") == 1
    spool.put([batch(1, first=4)], HERE)
    assert (known(spool), spool.faults) == (set(), {"records": 4})  # they are not used for a while
    monkeypatch.setattr(records_module, "REST_SECONDS", 0.0)
    spool.put([batch(1, first=5)], HERE)
    assert known(spool) == {*ids(1), *ids(1, 5)}
    spool.close()


def test_records_that_are_locked_are_deleted_when_spans_are_lost(tmp_path: Path) -> None:
    first = spool_in(tmp_path)
    first.put([batch(2)], HERE)
    first.close()
    (file,) = tmp_path.glob("*.db")
    file.write_bytes(b"no database" * 1000)
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        spool = spool_in(tmp_path)
        assert (databases(tmp_path), known(spool)) == ([], set())
        spool.put([batch(2, first=3)], HERE)
        assert known(spool) == set(ids(2, 3))
    assert known(spool) == set(ids(2, 3))
    spool.close()


def test_a_recorded_request_stays_on_a_full_disk_while_its_pieces_are_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "10m") as disk:
        spool = spool_in(disk)
        spool.put([batch(2)], HERE)
        (parcel,) = spool.take("one", max_spans=10, max_bytes=2**20)
        fill(disk)
        pieces = spool.split("one", parcel, [batch(1), batch(1, first=2)])
        assert (len(pieces), due(spool)) == (2, 2)
        assert spool.take("one", max_spans=10, max_bytes=2**20) == pieces
        spool.close()
        (disk / "fill").unlink()
        following = spool_in(disk)
        assert (known(following), due(following)) == (set(ids(2)), 2)
        following.close()


def fill(disk: Path) -> None:
    """Fill a disk to its last block."""
    with (disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_child_that_is_forked_meanwhile_does_not_keep_other_processes_from_adoption(tmp_path: Path) -> None:
    with spool_module._adoption(tmp_path) as may_adopt:  # pyright: ignore[reportPrivateUsage]
        assert may_adopt
        (locked,) = [each for each in tuple(Path("/proc/self/fd").iterdir()) if each.resolve() == tmp_path]
        copy = os.dup(int(locked.name))  # it shares the lock, as that of a child does
    with locked_at_once(tmp_path):
        os.close(copy)


@contextmanager
def locked_at_once(directory: Path) -> Generator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    spool = spool_in(tmp_path)
    monkeypatch.setattr(fcntl, "flock", flock)
    assert spool.keep()
    monkeypatch.undo()
    spool.close()


def test_what_a_process_left_over_when_it_was_killed_is_deleted(tmp_path: Path) -> None:
    with closing(SpanRecords(tmp_path, Counter())) as records:
        records.record(HERE, [batch(1).body])
        names = ("1-a.new", "1-a.new-wal", "1-b.sqlite", "1-c.sqlite-wal", "1-d.corrupt")
        left = [tmp_path / f"{records_module.NAME.partition('{')[0]}{name}" for name in names]
        for path in left:
            path.write_bytes(b"")
            os.utime(path, (0, 0))
        records.tidy()
        assert [path for path in left if path.exists()] == left[-1:]
        assert records.known(HERE, trace_of(1), ids(1)) == set(ids(1))


def test_on_a_full_disk_spans_are_kept_without_records(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        spool = spool_in(disk)
        trace = 0
        while not spool.faults:
            trace += 1
            spool.put([batch(5, trace=trace)], HERE)
        assert due(spool) == 5 * trace
        resize(disk, "10m")
        spool.put([batch(5, trace=trace + 1)], HERE)
        assert known(spool, trace + 1) == set(ids(5))
        spool.close()


# -- bounds --------------------------------------------------------------------------------------------------


def test_records_are_deleted_a_week_after_the_last_span_of_their_trace(tmp_path: Path) -> None:
    day = [0.0]
    with closing(SpanRecords(tmp_path, Counter(), now=lambda: day[0] * 86400)) as records:
        records.record(HERE, [batch(1).body, batch(1, trace=2).body])
        day[0] = 6.0
        records.record(HERE, [batch(1, first=2).body])
        day[0] = 7.5
        records.tidy()
        assert records.known(HERE, trace_of(1), ids(2)) == set(ids(2))
        assert records.known(HERE, trace_of(2), ids(1)) == set()
        day[0] = 13.5
        records.tidy()
        assert records.known(HERE, trace_of(1), ids(2)) == set()


def test_the_oldest_traces_are_deleted_beyond_the_maximum_size(tmp_path: Path) -> None:
    most, at = 512 * 1024, [0.0]
    with closing(SpanRecords(tmp_path, Counter(), max_bytes=most, now=lambda: at[0])) as records:
        for trace in range(1, 1001):
            at[0] += 1.0
            records.record(HERE, [batch(40, trace=trace).body])
        records.tidy()
        kept = [trace for trace in range(1, 1001) if records.known(HERE, trace_of(trace), ids(1))]
        assert kept == list(range(kept[0], 1001))
        assert 100 < len(kept) < 900
    with closing(sqlite3.connect(database(tmp_path))) as db:
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        assert most / 2 < (pages - free) * 4096 <= most


def test_after_a_restart_of_the_machine_no_span_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot"
    monkeypatch.setattr(records_module, "_BOOT_ID", boot)
    boot.write_text("first")
    for expected in (set(ids(2)), set[str]()):
        with closing(SpanRecords(tmp_path, Counter())) as records:
            if boot.read_text() == "first":
                records.record(HERE, [batch(2).body])
            assert records.known(HERE, trace_of(1), ids(2)) == expected
        boot.write_text("second")


# -- takeovers -----------------------------------------------------------------------------------------------

ADA = Who(session_id="s")


def telemetry_to(receiver: Receiver, directory: Path, *more: Destination, rate: float = 1.0) -> Telemetry:
    to = otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces"))
    return Telemetry(Delivery([to, *more], Spool(directory), linger=0), sampling=SamplingConfig(rate=rate))


def again(telemetry: Telemetry, spans: Batch, *, replayed: bool = True) -> None:
    telemetry.adopt()
    telemetry.take_over((trace_of(1),))
    telemetry.begin(trace_of(1), ADA)
    telemetry.export(spans, replayed=replayed)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as made:
        yield made


@pytest.mark.parametrize("replayed", [True, False])
def test_a_session_that_is_taken_over_sends_only_what_was_not_stored(
    receiver: Receiver, tmp_path: Path, replayed: bool
) -> None:
    first = telemetry_to(receiver, tmp_path)
    first.begin(trace_of(1), ADA)
    first.export(batch(2))
    assert first.flush(WAIT_SECONDS)
    second = telemetry_to(receiver, tmp_path)
    again(second, batch(3), replayed=replayed)
    assert second.flush(WAIT_SECONDS)
    assert (len(receiver.received), receiver.times) == (3, 3)
    assert first.shutdown() and second.shutdown()


@pytest.mark.parametrize("keeps", [True, False])
def test_no_span_is_lost_when_a_living_host_that_lost_its_session_decides_on_held_spans(
    receiver: Receiver, tmp_path: Path, keeps: bool
) -> None:
    first, second = (telemetry_to(receiver, tmp_path, rate=0.0) for _ in range(2))
    first.begin(trace_of(1), ADA)
    first.export(batch(2))
    assert first.write(WAIT_SECONDS)
    again(second, batch(3))
    assert second.flush(WAIT_SECONDS)
    assert len(receiver.received) == 3
    if keeps:
        first.export(batch(1, first=4), replayed=True)
    first.end((trace_of(1),), ADA)
    assert first.flush(WAIT_SECONDS)
    assert (len(receiver.received), receiver.times) == ((4, 6) if keeps else (3, 3))
    assert first.shutdown() and second.shutdown()


def test_a_trace_that_a_session_joins_after_its_takeover_is_taken_over_too(receiver: Receiver, tmp_path: Path) -> None:
    first = telemetry_to(receiver, tmp_path)
    first.begin(trace_of(1), ADA)
    first.export(batch(2))
    assert first.flush(WAIT_SECONDS)
    second = telemetry_to(receiver, tmp_path)
    root = Root(trace_id=trace_of(2), span_id="a" * 16, parent_span_id=None, tracestate="", start=0)
    trace = SessionTrace(second, {}, root, ADA)
    trace.take_over()
    trace.admit(TraceContext(trace_of(1), ""))
    second.export(batch(3))
    assert second.flush(WAIT_SECONDS)
    assert (len(receiver.received), receiver.times) == (3, 3)
    assert first.shutdown() and second.shutdown()


def test_a_takeover_waits_until_the_files_of_the_dead_process_are_taken_over(
    receiver: Receiver, tmp_path: Path
) -> None:
    second = telemetry_to(receiver, tmp_path)
    assert second.flush(WAIT_SECONDS)  # its first round of upkeep is over
    killed_for_otlp(receiver, tmp_path)
    again(second, batch(5))
    assert second.flush(WAIT_SECONDS)
    assert (len(receiver.received), receiver.times) == (5, 5)
    assert second.shutdown()


def test_a_takeover_that_would_wait_for_too_long_sends_spans_again_and_says_so(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "ADOPTION_SECONDS", 0.05)
    monkeypatch.setattr(delivery_module, "TAKEOVER_SECONDS", 0.2)
    killed_for_otlp(receiver, tmp_path)
    with adopting(tmp_path):
        telemetry = telemetry_to(receiver, tmp_path)
        again(telemetry, batch(5))
        receiver.wait_for(lambda: receiver.times == 3)  # the two that are recorded wait in the file
    telemetry.adopt()
    receiver.wait_for(lambda: receiver.times == 7)
    assert len(receiver.received) == 5
    assert caplog.text.count("may be sent again") == 1
    assert telemetry.shutdown()


def killed_for_otlp(receiver: Receiver, directory: Path) -> None:
    """Run a process that stores four spans for the receiver and is killed before it records the last two."""
    key = otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces")).key
    command = [sys.executable, "-c", DIES.replace("one", key), str(directory), "put"]
    assert subprocess.run(command, cwd=ROOT, timeout=WAIT_SECONDS).returncode == -signal.SIGKILL


def test_a_takeover_shows_the_whole_session_to_an_exporter_of_this_process_alone(
    receiver: Receiver, tmp_path: Path
) -> None:
    first, second = InMemorySpanExporter(), InMemorySpanExporter()
    dead = telemetry_to(receiver, tmp_path, Custom(first, "console", durable=False))
    dead.begin(trace_of(1), ADA)
    dead.export(batch(2))
    assert dead.flush(WAIT_SECONDS)
    telemetry = telemetry_to(receiver, tmp_path, Custom(second, "console", durable=False))
    again(telemetry, batch(3))
    assert telemetry.flush(WAIT_SECONDS)
    assert [len(each.get_finished_spans()) for each in (first, second)] == [2, 3]
    assert receiver.times == 3
    assert dead.shutdown() and telemetry.shutdown()
