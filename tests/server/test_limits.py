"""The limits of a tenant's turns and costs, and idempotent requests."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from host_client.service._limits import (
    IDEMPOTENCY_SECONDS,
    IN_FLIGHT_SECONDS,
    RecordedAnswer,
    ServiceLimits,
    budget_of,
    check_budget,
    check_prompt,
    check_turn,
    day_of,
    idempotent,
    request_digest,
)
from host_client.service._problems import ProblemError
from host_client.store._sqlite import SqliteStore
from host_client.store.base import Additions, Root, SessionRecord, SessionState, StoredSession, StoreError

pytestmark = pytest.mark.anyio

NOON = 1_700_049_600.0  # 2023-11-15T12:00:00Z
CREATED = RecordedAnswer(status=201, body=b'{"id":"s-1"}', headers={"location": "/api/sessions/s-1"})
A, B = request_digest("POST", "/api/sessions", b"{}"), request_digest("POST", "/api/sessions", b'{"a":1}')


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Action:
    """An action that counts its executions and can be held back."""

    def __init__(self, answer: RecordedAnswer | Exception = CREATED) -> None:
        self.answer = answer
        self.times = 0
        self.given: list[str | None] = []
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, given: str | None) -> RecordedAnswer:
        self.times += 1
        self.given.append(given)
        self.begun.set()
        await self.may_end.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def refused(work: Awaitable[Any]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await work
    return caught.value


async def begin(store: SqliteStore, tenant_id: str, budget: float | None, cost: float = 0.0) -> str:
    """Make an open session of a tenant with a budget and an earlier cost; return its id."""
    session_id = str(uuid.uuid4())
    root = Root(trace_id="1" * 32, span_id="2" * 16, parent_span_id=None, tracestate="", start=1)
    request = {"max_budget_usd": budget} if budget is not None else {}
    record = SessionRecord(
        id=session_id, tenant_id=tenant_id, created_at=NOON, created_by="ada", title="t", root=root, request=request
    )
    await store.create(StoredSession(record, SessionState(cost_usd=cost)), "me", [], most_open=None)
    return session_id


async def spend(store: SqliteStore, tenant_id: str, cost: float) -> None:
    """Add a closed session with this cost at noon."""
    session_id = await begin(store, tenant_id, None)
    state = SessionState(last_event_id=1, cost_usd=cost, status="closed", closed_at=NOON)
    await store.append(session_id, "me", [b"{}"], state, Additions(cost_usd=cost, day=day_of(NOON)))


# -- turns and money ---------------------------------------------------------------------------------------


async def test_turns_of_a_minute_are_counted_by_tenant(tmp_path: Path) -> None:
    clock = Clock()
    clock.now += 50
    store = SqliteStore(tmp_path / "service.sqlite", clock=clock)
    await store.open()
    limits = ServiceLimits(turns_per_minute=3)
    for _ in range(3):
        await check_turn(store, "acme", limits, clock.now)
    problem = await refused(check_turn(store, "acme", limits, clock.now))
    assert (problem.status_code, problem.slug) == (429, "too-many-turns")
    assert problem.headers == {"retry-after": "10"}
    await check_turn(store, "other", limits, clock.now)
    clock.now += 10
    await check_turn(store, "acme", limits, clock.now)
    await store.close()


async def test_no_limit_is_none(store: SqliteStore) -> None:
    limits = ServiceLimits(turns_per_minute=None)
    for _ in range(3):
        await check_turn(store, "acme", limits)
    await check_budget(store, "acme", limits)
    assert await budget_of(store, "acme", limits, None) is None
    assert await budget_of(store, "acme", limits, 7.0) == 7.0


async def test_a_tenant_that_has_spent_its_day_waits_for_the_next(store: SqliteStore) -> None:
    limits = ServiceLimits(usd_per_tenant_day=2.0)
    assert await budget_of(store, "acme", limits, None, NOON) == 2.0
    await spend(store, "acme", 0.5)
    assert await budget_of(store, "acme", limits, None, NOON) == 1.5
    assert await budget_of(store, "acme", limits, 1.0, NOON) == 1.0
    await check_budget(store, "acme", limits, NOON)
    await spend(store, "acme", 1.5)
    for work in (check_budget(store, "acme", limits, NOON), budget_of(store, "acme", limits, 1.0, NOON)):
        problem = await refused(work)
        assert (problem.status_code, problem.slug) == (429, "budget-exceeded")
        assert problem.headers == {"retry-after": "43200"}
        assert problem.extras == {"limit_usd": 2.0}
    assert await budget_of(store, "acme", limits, None, NOON + 43_200) == 2.0
    assert await budget_of(store, "other", limits, None, NOON) == 2.0


async def test_what_open_sessions_may_still_cost_is_not_given_again(store: SqliteStore) -> None:
    limits = ServiceLimits(usd_per_tenant_day=2.0)
    await begin(store, "acme", 1.5, cost=0.5)
    assert await budget_of(store, "acme", limits, None, NOON) == 1.0
    await begin(store, "acme", 1.0)
    problem = await refused(budget_of(store, "acme", limits, 0.1, NOON))
    assert (problem.slug, problem.headers) == ("budget-exceeded", {"retry-after": "60"})
    assert "open sessions may spend the rest" in problem.detail
    await check_budget(store, "acme", limits, NOON)  # turns of these open sessions are still allowed
    assert await budget_of(store, "other", limits, None, NOON) == 2.0


async def test_an_open_session_without_a_budget_may_cost_all_that_is_left(store: SqliteStore) -> None:
    await begin(store, "acme", None)
    problem = await refused(budget_of(store, "acme", ServiceLimits(usd_per_tenant_day=2.0), 0.1, NOON))
    assert problem.slug == "budget-exceeded"


def test_a_day_is_utcs() -> None:
    assert [day_of(NOON), day_of(NOON + 43_199.999), day_of(NOON + 43_200)] == [
        "2023-11-15",
        "2023-11-15",
        "2023-11-16",
    ]


def test_a_text_is_as_long_as_it_may_be() -> None:
    check_prompt("é" * 100, ServiceLimits(max_prompt=100))
    with pytest.raises(ProblemError, match="must have at most 100 characters, not 101") as caught:
        check_prompt("é" * 101, ServiceLimits(max_prompt=100))
    assert caught.value.slug == "invalid"


# -- idempotency -------------------------------------------------------------------------------------------


async def test_the_same_request_is_answered_again_and_carried_out_once(store: SqliteStore) -> None:
    action = Action()
    first = await idempotent(store, "acme", "k", A, action)
    again = await idempotent(store, "acme", "k", A, action)
    assert first == CREATED
    assert again == RecordedAnswer(
        status=201, body=CREATED.body, headers={"location": "/api/sessions/s-1", "idempotent-replayed": "true"}
    )
    assert action.times == 1
    response = again.response()
    assert (response.status_code, bytes(response.body)) == (201, CREATED.body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["idempotent-replayed"] == "true"


async def test_of_twenty_at_once_one_is_carried_out(store: SqliteStore) -> None:
    action = Action()
    action.may_end.clear()

    async def ask() -> RecordedAnswer | ProblemError:
        try:
            return await idempotent(store, "acme", "k", A, action)
        except ProblemError as problem:
            return problem

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    await asyncio.wait_for(action.begun.wait(), 20)
    others = set(asking)
    while len(others) > 1:  # all others are refused while one executes the action
        done, others = await asyncio.wait(others, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert done
    action.may_end.set()
    answers = [await task for task in asking]
    problems = [each for each in answers if isinstance(each, ProblemError)]
    assert [each for each in answers if isinstance(each, RecordedAnswer)] == [CREATED]
    assert {(each.status_code, each.slug) for each in problems} == {(409, "key-in-use")}
    assert len(problems) == 19
    assert all(each.headers and int(each.headers["retry-after"]) > 0 for each in problems)
    assert action.times == 1


async def test_a_key_of_another_request_is_refused(store: SqliteStore) -> None:
    action = Action()
    await idempotent(store, "acme", "k", A, action)
    problem = await refused(idempotent(store, "acme", "k", B, action))
    assert (problem.status_code, problem.slug) == (422, "key-reused")
    assert action.times == 1


async def test_tenants_do_not_share_keys(store: SqliteStore) -> None:
    action = Action()
    await idempotent(store, "acme", "k", A, action)
    assert await idempotent(store, "other", "k", B, action) == CREATED
    assert action.times == 2


async def test_without_a_key_each_is_carried_out(store: SqliteStore) -> None:
    action = Action()
    assert [await idempotent(store, "acme", None, A, action) for _ in range(2)] == [CREATED, CREATED]
    assert action.times == 2


@pytest.mark.parametrize("error", [ProblemError("too-many-sessions"), StoreError("full"), RuntimeError("a bug")])
async def test_what_failed_may_be_tried_again(store: SqliteStore, error: Exception) -> None:
    with pytest.raises(type(error)):
        await idempotent(store, "acme", "k", A, Action(error))
    assert await idempotent(store, "acme", "k", B, Action()) == CREATED


async def test_what_was_cancelled_may_be_tried_again(store: SqliteStore) -> None:
    action = Action()
    action.may_end.clear()
    asking = asyncio.create_task(_awaited(idempotent(store, "acme", "k", A, action)))
    await asyncio.wait_for(action.begun.wait(), 20)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await idempotent(store, "acme", "k", A, Action()) == CREATED


async def _awaited(work: Coroutine[Any, Any, RecordedAnswer]) -> RecordedAnswer:
    return await work


async def test_what_was_done_is_told_although_it_cannot_be_remembered(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "answer", full)
    assert await idempotent(store, "acme", "k", A, Action()) == CREATED
    assert "the disk is full" in caplog.text


@pytest.mark.parametrize("key", ["", "a" * 256, "a\nb", "a\tb", "é", "\x7f"])
async def test_what_is_no_key_is_refused(store: SqliteStore, key: str) -> None:
    problem = await refused(idempotent(store, "acme", key, A, Action()))
    assert (problem.status_code, problem.slug) == (400, "bad-request")


@pytest.mark.parametrize("key", ["a", "a" * 255, "a b~!", '"8e03978e-40d5"'])
async def test_a_key_is_printable_ascii(store: SqliteStore, key: str) -> None:
    assert await idempotent(store, "acme", key, A, Action()) == CREATED


@pytest.fixture
def reopened(tmp_path: Path) -> Callable[[Clock], SqliteStore]:
    return lambda clock: SqliteStore(tmp_path / "service.sqlite", clock=clock)


async def test_an_answer_outlives_the_process_for_a_day(reopened: Callable[[Clock], SqliteStore]) -> None:
    clock, action = Clock(), Action()
    store = reopened(clock)
    await store.open()
    await idempotent(store, "acme", "k", A, action)
    await store.close()
    store = reopened(clock)
    await store.open()
    clock.now += IDEMPOTENCY_SECONDS - 1
    assert (await idempotent(store, "acme", "k", A, action)).headers["idempotent-replayed"] == "true"
    clock.now += 1
    assert await idempotent(store, "acme", "k", A, action) == CREATED
    assert action.times == 2
    await store.close()


async def nothing(*_: object) -> None:
    """Do nothing, in place of a step that a killed process does not reach."""


async def test_a_key_whose_process_died_is_free_before_long_for_the_same_thing(
    reopened: Callable[[Clock], SqliteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = reopened(clock)
    await store.open()
    died = Action()
    with monkeypatch.context() as patch:
        patch.setattr(store, "answer", nothing)
        await idempotent(store, "acme", "k", A, died)
    assert (await refused(idempotent(store, "acme", "k", A, Action()))).slug == "key-in-use"
    clock.now += IN_FLIGHT_SECONDS
    again, other = Action(), Action()
    assert await idempotent(store, "acme", "k", A, again) == CREATED
    assert died.given == again.given != [None]
    assert await idempotent(store, "other", "k", A, other) == CREATED
    assert other.given != again.given
    await store.close()


def test_a_request_is_its_method_path_and_body() -> None:
    digests = {
        request_digest("POST", "/a", b"b"),
        request_digest("PUT", "/a", b"b"),
        request_digest("POST", "/ab", b""),
        request_digest("POST", "/a", b""),
    }
    assert len(digests) == 4
