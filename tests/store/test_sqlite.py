"""The SQLite store: exclusive access to its file, surviving data, and failures of the file."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from host_client.errors import ConfigurationError
from host_client.store import open_store
from host_client.store._sqlite import SqliteStore
from host_client.store._sqlite_file import APPLICATION_ID, VERSION
from host_client.store.base import Additions, NotOwnerError, SessionState, StoreError
from tests.store.records import ME, WAIT_SECONDS, append, appending_process, created, numbers, process, stored, texts

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sandspan" / "service.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    yield store
    await store.close()


async def test_a_second_process_is_refused_and_told_whom_to_stop(path: Path) -> None:
    with appending_process(str(path)) as child:
        assert child.stdout is not None
        child.stdout.readline()
        second = SqliteStore(path)
        with pytest.raises(StoreError, match=rf"process {child.pid}: stop it first.*redis://"):
            await second.open()
        with pytest.raises(StoreError, match="closed"):
            await second.ping()
        child.kill()
        child.wait(WAIT_SECONDS)
        await second.open()
        assert await second.unfinished() == ["s-1"]
        await second.close()


async def test_the_file_is_its_owners_alone(store: SqliteStore, path: Path) -> None:
    await created(store)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("service.sqlite", "service.sqlite-wal", "service.sqlite-shm", "service.sqlite.lock"), 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


async def test_a_hundred_appends_at_once_share_their_commits(store: SqliteStore, path: Path) -> None:
    for number in range(100):
        await created(store, f"s-{number}")
    wal = path.with_name("service.sqlite-wal")

    async def grown(*appends: AsyncIterator[None]) -> int:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        for each in appends:
            await anext(each, None)
        return wal.stat().st_size

    async def one_by_one() -> AsyncIterator[None]:
        for number in range(100):
            await append(store, SessionState(), session_id=f"s-{number}")
        yield

    async def at_once() -> AsyncIterator[None]:
        state = SessionState(last_event_id=1)
        await asyncio.gather(*(append(store, state, session_id=f"s-{number}") for number in range(100)))
        yield

    async with asyncio.timeout(WAIT_SECONDS):
        alone = await grown(one_by_one())
        together = await grown(at_once())
    # A transaction writes each changed page once, so the file's growth shows the number of transactions.
    assert together < alone / 4


async def test_what_one_call_does_wrong_is_undone_and_leaves_the_others(store: SqliteStore) -> None:
    one, two = await created(store, "s-1"), await created(store, "s-2")
    broken = Additions(spans=[b"span"], cost_usd=1.0, day=object())  # pyright: ignore[reportArgumentType] - what fails half way
    failed, done = await asyncio.gather(
        store.append("s-1", ME, texts(1, 1), msgspec.structs.replace(one, last_event_id=1), broken),
        append(store, two, session_id="s-2"),
        return_exceptions=True,
    )
    assert isinstance(failed, StoreError) and isinstance(done, SessionState)
    assert await numbers(store, "s-1") == []
    assert await numbers(store, "s-2") == [1]
    assert [span async for span in store.spans("s-1")] == []
    assert await store.get("s-1") == stored("s-1")


async def test_who_is_not_the_owner_fails_alone_and_the_others_of_its_transaction_are_kept_once(
    store: SqliteStore,
) -> None:
    one, two, three = [await created(store, f"s-{number}") for number in (1, 2, 3)]
    more = Additions(cost_usd=1.0, day="2999-12-31")
    first, failed, last = await asyncio.gather(
        store.append("s-1", ME, texts(1, 1), msgspec.structs.replace(one, last_event_id=1), more),
        store.append("s-2", "somebody", texts(1, 1), msgspec.structs.replace(two, last_event_id=1), more),
        append(store, three, session_id="s-3"),
        return_exceptions=True,
    )
    assert isinstance(failed, NotOwnerError) and first is None and isinstance(last, SessionState)
    assert [await numbers(store, f"s-{number}") for number in (1, 2, 3)] == [[1], [], [1]]
    assert await store.spent("acme", "2999-12-31") == 1.0


async def test_an_unexpected_error_in_the_stores_thread_fails_the_call_and_no_later_one(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_: sqlite3.Connection) -> None:
        raise SystemExit(3)  # an error that the store's thread does not expect

    async with asyncio.timeout(WAIT_SECONDS):
        failed, done = await asyncio.gather(
            store._thread.run(work),  # pyright: ignore[reportPrivateUsage]
            created(store),
            return_exceptions=True,
        )
        assert isinstance(failed, StoreError) and "service.sqlite cannot be used: unexpected SystemExit" in str(failed)
        assert isinstance(done, SessionState), "it shared the transaction"
        await append(store, done)
    assert "unexpected error in the thread" in caplog.text


async def test_a_file_that_cannot_be_opened_for_an_unexpected_reason_is_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "null\0.sqlite")  # raises a ValueError, not an OSError
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(StoreError, match="cannot be used: unexpected ValueError"):
            await store.open()
        with pytest.raises(StoreError, match="is closed"):
            await store.ping()


async def test_what_follows_a_call_and_fails_is_told_to_its_caller_alone(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("a fault of ours")

    async with asyncio.timeout(WAIT_SECONDS):
        failed, done = await asyncio.gather(
            store._thread.run(lambda _: None, broken),  # pyright: ignore[reportPrivateUsage]
            created(store),
            return_exceptions=True,
        )
    assert isinstance(failed, RuntimeError) and isinstance(done, SessionState)
    assert "a fault of ours" in caplog.text


async def test_what_is_read_after_an_append_that_may_wait_has_seen_it(store: SqliteStore) -> None:
    state = await created(store)
    writing = asyncio.ensure_future(append(store, state))
    await asyncio.sleep(0)
    assert await numbers(store) == [1]
    await writing


async def test_a_cancelled_append_is_kept_whole_or_not_at_all(store: SqliteStore) -> None:
    state = await created(store)
    task = asyncio.create_task(append(store, state, 3))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = await store.get("s-1")
    assert kept is not None
    assert await numbers(store) == list(range(1, kept.state.last_event_id + 1))


async def fill_up(path: str) -> None:
    """Append more than the file may hold, which must fail, and a small event, which must succeed."""
    store = SqliteStore(Path(path))
    await store.open()
    state = await append(store, await created(store, "s-1"), 5)
    other = await created(store, "s-2")
    large = msgspec.structs.replace(state, last_event_id=6)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    async with asyncio.timeout(WAIT_SECONDS):
        failed, done = await asyncio.gather(
            store.append("s-1", ME, [b"x" * 8_000_000], large),
            append(store, other, session_id="s-2"),
            return_exceptions=True,
        )
    assert isinstance(failed, StoreError) and path in str(failed), failed
    assert isinstance(done, SessionState), done
    assert await numbers(store, "s-1") == [1, 2, 3, 4, 5]
    assert await store.get("s-1") == stored("s-1", last_event_id=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.append("s-1", ME, [b"x" * 8_000_000], large)
    await store.close()


async def test_a_full_disk_fails_the_call_alone_and_is_forgotten_once_there_is_room(path: Path) -> None:
    with process(__name__, "fill_up", str(path)) as child:
        assert child.wait(WAIT_SECONDS) == 0
    store = SqliteStore(path)
    await store.open()
    assert await numbers(store, "s-2") == [1]
    (large,) = await store.read("s-1", 5)
    assert (large.id, len(large.data)) == (6, 8_000_000)
    await store.close()


async def test_files_of_others_and_of_newer_versions_are_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    cases = {
        "no.txt": (b"no database\n" * 100, "not a database"),
        "foreign": ("CREATE TABLE notes (text)", "another program's"),
        "newer": (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION + 1}", "newer sandspan"),
    }
    for name, (content, why) in cases.items():
        file = path.parent / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            connection = sqlite3.connect(file)
            connection.executescript(content)
            connection.close()
        before = file.read_bytes()
        with pytest.raises(StoreError, match=why):
            await SqliteStore(file).open()
        assert file.read_bytes() == before


async def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        await SqliteStore(tmp_path / "file" / "service.sqlite").open()


async def test_counters_of_the_past_are_forgotten(path: Path) -> None:
    now = 1_700_000_000.0  # 2023-11-14
    store = SqliteStore(path, clock=lambda: now)
    await store.open()
    state = await created(store)
    for day in ("2023-11-14", "2023-10-04"):
        await store.append("s-1", ME, (), state, Additions(cost_usd=1.0, day=day))
    await store.count("acme", "turns", 60.0)
    await store.reserve("acme", "k-1", "digest", 60.0)
    assert await store.count("acme", "turns", 60.0) == 2
    now += 86_400
    await store.expire(0.0)
    assert await store.spent("acme", "2023-11-14") == 1.0
    assert await store.spent("acme", "2023-10-04") == 0.0
    assert await store.count("acme", "turns", 60.0) == 1
    assert await store.reserve("acme", "k-1", "digest", 60.0) is None
    await store.close()


# -- the file's location ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        (None, {"XDG_STATE_HOME": "/x", "HOME": "/home/ada"}, "/x/sandspan/service.sqlite"),
        ("", {"XDG_STATE_HOME": "x", "HOME": "/home/ada"}, "/home/ada/.local/state/sandspan/service.sqlite"),
        ("a/b.sqlite", {}, "a/b.sqlite"),
        ("sqlite:///var/a%20b.sqlite", {}, "/var/a b.sqlite"),
        ("sqlite:////var/b.sqlite", {}, "/var/b.sqlite"),
    ],
)
def test_a_path_or_nothing_is_a_file(url: str | None, environ: dict[str, str], expected: str) -> None:
    store = open_store(url, environ)
    assert isinstance(store, SqliteStore)
    assert store.path == Path(expected)


@pytest.mark.parametrize("url", ["postgres://ada:secret@db/x", "sqlite://secret", "sqlite:///", "http://secret", None])
def test_other_places_are_refused_without_telling_the_secret(url: str | None) -> None:
    with pytest.raises(ConfigurationError, match="--store takes a path") as raised:
        open_store(url, {})
    assert "secret" not in str(raised.value)
