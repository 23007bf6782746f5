"""The service's limits under concurrent requests, and requests that are sent twice but executed once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_client.errors import SandboxStartError
from host_client.sandbox import LocalSandbox, SandboxInfo
from host_client.service import _service as services
from host_client.service._app import create_app
from host_client.service._downloads import AT_ONCE, MOST_WAITING, FileAnswer, Transfers
from host_client.service._hosting import House
from host_client.service._limits import IN_FLIGHT_SECONDS, ServiceLimits
from host_client.service._problems import ProblemError
from host_client.service._service import Retention, Service
from host_client.service._sse import PIECE
from host_client.service.config import ServiceConfig
from host_client.service.run import options_of
from host_client.store._sqlite import SqliteStore
from host_client.store.base import StoredSession
from host_client.telemetry import Telemetry

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60.0
NOON = 1_700_049_600.0


class NeverThere(LocalSandbox):
    """A sandbox whose creation never ends, so that its session stays in its first state."""

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        await asyncio.Event().wait()
        raise AssertionError


class Refused(LocalSandbox):
    """A sandbox whose creation fails, so that its session ends at once."""

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        raise SandboxStartError("there is no room")


async def nothing(*_: object) -> None:
    """Do nothing, in place of a step that a killed process does not reach."""


@asynccontextmanager
async def serving(
    store: SqliteStore,
    *,
    limits: ServiceLimits | None = None,
    sandbox: Callable[[], LocalSandbox] = NeverThere,
    retention: Retention | None = None,
) -> AsyncGenerator[tuple[Service, httpx.AsyncClient]]:
    house = House(
        store=store,
        owner="me",
        telemetry=Telemetry(),
        environ={},
        sandbox=lambda _: sandbox(),
        options=options_of,
        forget=nothing,
    )
    service = Service(house, retention=retention, shutdown_seconds=0.01)
    await service.start()
    app = create_app(service, ServiceConfig(limits=limits or ServiceLimits()))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8321", timeout=WAIT_SECONDS) as client:
        yield service, client
    await service.stop()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.sqlite"


# -- idempotency -------------------------------------------------------------------------------------------


async def test_a_session_is_made_once_although_its_maker_was_killed_before_it_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = SqliteStore(path, clock=clock)
    request: dict[str, Any] = {"json": {"prompt": "go"}, "headers": {"idempotency-key": "order-7"}}
    async with serving(store, limits=ServiceLimits(sessions_per_tenant=1)) as (_, client):
        with monkeypatch.context() as patch:
            patch.setattr(store, "answer", nothing)
            first = await client.post("/api/sessions", **request)
        assert (await client.post("/api/sessions", **request)).status_code == 409
        clock.now += IN_FLIGHT_SECONDS
        again = await client.post("/api/sessions", **request)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json()["id"] == again.json()["id"]
        assert len((await client.get("/api/sessions")).json()["sessions"]) == 1


async def test_a_turn_is_queued_once_although_its_sender_was_killed_before_it_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = SqliteStore(path, clock=clock)
    async with serving(store, limits=ServiceLimits(turns_per_minute=2)) as (_, client):
        session_id = (await client.post("/api/sessions", json={"prompt": "go"})).json()["id"]
        request: dict[str, Any] = {"json": {"text": "more"}, "headers": {"idempotency-key": "order-7"}}
        with monkeypatch.context() as patch:
            patch.setattr(store, "answer", nothing)
            first = await client.post(f"/api/sessions/{session_id}/turns", **request)
        clock.now += IN_FLIGHT_SECONDS
        again = await client.post(f"/api/sessions/{session_id}/turns", **request)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        assert len(await store.commands(session_id, 0)) == 2
        unknown = await client.post(
            f"/api/sessions/{session_id}/approvals/turn:{first.json()['turn_id']}", json={"decision": "deny"}
        )
        assert unknown.status_code == 404


# -- budgets -----------------------------------------------------------------------------------------------


async def test_sessions_that_are_made_at_once_share_the_days_money(path: Path) -> None:
    limits = ServiceLimits(usd_per_tenant_day=1.0)
    async with serving(SqliteStore(path), limits=limits) as (_, client):
        body = {"prompt": "go", "max_budget_usd": 0.3}
        answers = await asyncio.gather(*(client.post("/api/sessions", json=body) for _ in range(20)))
    budgets = [answer.json()["max_budget_usd"] for answer in answers if answer.status_code == 201]
    assert sorted(budgets) == pytest.approx([0.1, 0.3, 0.3, 0.3])  # pyright: ignore[reportUnknownMemberType]
    refused = [answer.json()["type"] for answer in answers if answer.status_code != 201]
    assert refused == ["/problems/budget-exceeded"] * 16


# -- retention and closing ---------------------------------------------------------------------------------


async def test_a_service_that_is_stopped_takes_no_turns(path: Path) -> None:
    async with serving(SqliteStore(path)) as (service, client):
        session_id = (await client.post("/api/sessions", json={"prompt": "go"})).json()["id"]
        service.closing = True
        turn = await client.post(f"/api/sessions/{session_id}/turns", json={"text": "more"})
        assert (turn.status_code, turn.json()["type"]) == (503, "/problems/shutting-down")
        assert int(turn.headers["retry-after"]) > 0


async def test_a_session_that_was_made_while_the_service_was_stopped_is_closed_and_not_begun(path: Path) -> None:
    class StoppedMeanwhile(SqliteStore):
        async def create(self, *args: Any, **more: Any) -> None:
            await super().create(*args, **more)
            service.closing = True

    store = StoppedMeanwhile(path)
    async with serving(store) as (service, client):
        made = await client.post("/api/sessions", json={"prompt": "go"})
        assert (made.status_code, made.json()["status"]) == (201, "closed")
        assert made.json()["id"] not in service._hosted  # pyright: ignore[reportPrivateUsage]
        (entry,) = await store.read(made.json()["id"], 0)
        assert b'"reason":"shutdown"' in entry.data
        assert await store.unfinished() == []


# -- downloads ---------------------------------------------------------------------------------------------


async def test_a_tenant_has_so_many_readers_whatever_they_read(path: Path) -> None:
    async with serving(SqliteStore(path), limits=ServiceLimits(readers_per_tenant=2)) as (service, client):
        made = [(await client.post("/api/sessions", json={"prompt": "go"})).json()["id"] for _ in range(3)]
        stored: list[StoredSession] = [await service.get(each, None) for each in made]
        readers = [service.reader(each, 0) for each in stored[:2]]
        third = await client.get(f"/api/sessions/{made[2]}/events")
        assert (third.status_code, third.json()["type"]) == (429, "/problems/too-many-readers")
        assert service.readers_of(stored[0].record.tenant_id) == 2
        for each, reader in zip(stored, readers, strict=False):
            service.left(each, reader, "end")
        assert service.readers_of(stored[0].record.tenant_id) == 0


async def test_a_few_files_are_sent_while_some_more_wait_and_others_come_again() -> None:
    downloads, begun, may_end = Transfers(), asyncio.Semaphore(0), asyncio.Event()

    async def download() -> None:
        async with downloads.place():
            begun.release()
            await may_end.wait()

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(download())
            await begun.acquire()
        waiting = [group.create_task(download()) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as caught:
            await download()
        assert (caught.value.slug, caught.value.headers) == ("too-many-downloads", {"retry-after": "10"})
        assert begun.locked() and not any(each.done() for each in waiting)
        may_end.set()
    async with AsyncExitStack() as stack, asyncio.timeout(WAIT_SECONDS):
        for _ in range(AT_ONCE):  # fails if a place was not freed
            await stack.enter_async_context(downloads.place())


async def test_a_file_is_written_in_pieces_and_a_reader_that_takes_nothing_is_cut_off() -> None:
    content, sent, stuck = b"x" * (2 * PIECE + 1), list[MutableMapping[str, Any]](), False

    async def read() -> bytes:
        return content

    async def send(message: MutableMapping[str, Any]) -> None:
        if stuck and message.get("body"):
            await asyncio.Event().wait()
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    downloads = Transfers()
    await FileAnswer(read, downloads, {})({"type": "http"}, receive, send)
    assert (b"content-length", b"%d" % len(content)) in sent[0]["headers"]
    assert [len(each["body"]) for each in sent[1:]] == [PIECE, PIECE, 1, 0]
    sent.clear()
    stuck = True
    async with asyncio.timeout(WAIT_SECONDS):
        for _ in range(AT_ONCE + 1):
            await FileAnswer(read, downloads, {}, seconds=0.01)({"type": "http"}, receive, send)
    assert [each["type"] for each in sent] == ["http.response.start"] * (AT_ONCE + 1)


async def test_the_log_of_a_session_that_ended_is_cut_as_well(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RETENTION_PAUSE", 0.01)
    store = SqliteStore(path)
    async with serving(store, sandbox=Refused, retention=Retention(events=1)) as (_, client):
        session_id = (await client.post("/api/sessions", json={"prompt": "go"})).json()["id"]
        async with asyncio.timeout(WAIT_SECONDS):
            while (await client.get(f"/api/sessions/{session_id}")).json()["status"] != "failed":
                pass
            while await store.oldest(session_id) == 1:
                pass
        log = (await client.get(f"/api/sessions/{session_id}/log")).json()
        assert [each["event"]["type"] for each in log["events"]] == ["closed"]
