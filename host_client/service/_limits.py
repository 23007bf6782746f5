"""What a tenant may use, and the same answer for the same request: limits and idempotency, over the store."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from starlette.responses import Response

from host_client.store.base import Store, StoredSession, StoreError

from ._problems import ProblemError

TURNS_WINDOW = 60.0
IDEMPOTENCY_SECONDS = 24 * 3600.0
IN_FLIGHT_SECONDS = 300.0
"""How long a key stays taken whose process died: longer than any action of a route."""
PROMISED_SECONDS = 60.0
"""When to come again where all is promised: a session may have been closed."""
_SMALLEST_USD = 1e-9
REPLAYED = "idempotent-replayed"

_KEY = re.compile(r"[ -~]{1,255}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """What one tenant, session or request may use; None is without a limit. The documents' table is checked."""

    max_body: int = 1024 * 1024
    """Bytes of a request's body."""
    max_prompt: int = 100_000
    """Characters of a prompt or a turn's text."""
    sessions_per_tenant: int | None = 100
    """Open ones."""
    turns_per_minute: int | None = 60
    """Of a tenant; a session's first turn counts."""
    usd_per_tenant_day: float | None = None
    """US dollars that a tenant's turns may cost on one day (UTC); what is promised to open sessions is not given again.
    """
    readers_per_session: int | None = 1000
    """Open streams of one session, in one process."""
    readers_per_tenant: int | None = 2000
    """Open streams of all sessions of a tenant, in one process."""


def day_of(now: float) -> str:
    """Return the day (UTC) of a time in seconds since the epoch, as a store knows it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def check_prompt(text: str, limits: ServiceLimits) -> None:
    """Raise `ProblemError` (422) for a text that is longer than allowed."""
    if len(text) > limits.max_prompt:
        what = f"has {len(text)} characters; {limits.max_prompt} are allowed"
        raise ProblemError("invalid", f"the text {what}", errors=[{"where": "body", "what": what}])


async def check_turn(store: Store, tenant_id: str, limits: ServiceLimits, now: float | None = None) -> None:
    """Count a turn; raise `ProblemError` (429) if it is one too many for this minute."""
    if limits.turns_per_minute is None:
        return
    if await store.count(tenant_id, "turns", TURNS_WINDOW) > limits.turns_per_minute:
        wait = TURNS_WINDOW - (time.time() if now is None else now) % TURNS_WINDOW
        detail = f"{limits.turns_per_minute} turns a minute are allowed"
        raise ProblemError("too-many-turns", detail, headers=_retry(wait), limit=limits.turns_per_minute)


async def check_budget(store: Store, tenant_id: str, limits: ServiceLimits, now: float | None = None) -> None:
    """Raise `ProblemError` (429) if the tenant has spent what it may on this day (UTC)."""
    if limits.usd_per_tenant_day is None:
        return
    now = time.time() if now is None else now
    if await _unspent(store, tenant_id, limits.usd_per_tenant_day, now) <= 0:
        detail = f"the tenant may spend ${limits.usd_per_tenant_day:g} a day (UTC), and has"
        wait = 86_400 - now % 86_400
        raise ProblemError("budget-exceeded", detail, headers=_retry(wait), limit_usd=limits.usd_per_tenant_day)


async def budget_of(
    store: Store, tenant_id: str, limits: ServiceLimits, wanted: float | None, now: float | None = None
) -> float | None:
    """Return the budget of a new session that would have this one, in US dollars; None: there is none.

    It is at most what the tenant has neither spent on this day (UTC) nor promised to sessions that are open. Raise
    `ProblemError` (429) where nothing is left. To be called for one new session of a tenant at a time.
    """
    if limits.usd_per_tenant_day is None:
        return wanted
    # First what is promised: what is spent meanwhile counts twice then, and not at all the other way round.
    promised = sum([_promised(each) for each in await store.open_sessions(tenant_id)])
    await check_budget(store, tenant_id, limits, now)
    left = await _unspent(store, tenant_id, limits.usd_per_tenant_day, now) - promised
    if left < _SMALLEST_USD:
        detail = (
            f"what is left of the tenant's ${limits.usd_per_tenant_day:g} a day (UTC) is promised to open sessions:"
            " close one, or give each a max_budget_usd"
        )
        headers = _retry(PROMISED_SECONDS)
        raise ProblemError("budget-exceeded", detail, headers=headers, limit_usd=limits.usd_per_tenant_day)
    return left if wanted is None else min(left, wanted)


def _promised(stored: StoredSession) -> float:
    """Return what an open session may still cost; without a budget, as one that is older than the limit, all."""
    budget = stored.record.request.get("max_budget_usd")
    return math.inf if budget is None else max(0.0, budget - stored.state.cost_usd)


async def _unspent(store: Store, tenant_id: str, usd: float, now: float | None) -> float:
    return usd - await store.spent(tenant_id, day_of(time.time() if now is None else now))


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


# -- idempotency -------------------------------------------------------------------------------------------


class RecordedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that can be given again. ``body`` is JSON; ``headers`` are those that belong to it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}

    def response(self) -> Response:
        return Response(self.body, self.status, dict(self.headers), media_type="application/json")


def request_digest(method: str, path: str, body: bytes) -> str:
    """Return what makes two requests the same one: a key that is used on another path is another use."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode("utf-8", "replace"), body))).hexdigest()


async def idempotent(
    store: Store,
    tenant_id: str,
    key: str | None,
    digest: str,
    action: Callable[[str | None], Awaitable[RecordedAnswer]],
) -> RecordedAnswer:
    """Carry out an action once for a key; answer the same again for 24 hours. Without a key it is just carried out.

    The action is given the id of what it makes, the same for each attempt of these 24 hours: where an earlier one was
    killed before its answer was kept, it finds what that has made. Without a key it is given None.

    Raise `ProblemError`: 409 while the first one is being carried out, 422 for a key of another request, or for what is
    no key. What the action raises frees the key.
    """
    if key is None:
        return await action(None)
    if _KEY.fullmatch(key) is None:
        raise ProblemError("bad-request", "an Idempotency-Key has 1 to 255 printable ASCII characters")
    there = await store.reserve(tenant_id, key, digest, IN_FLIGHT_SECONDS)
    if there is None:
        return await _first(store, tenant_id, key, digest, action)
    if there.digest != digest:
        raise ProblemError("key-reused", "this Idempotency-Key was used with another request; take a new one")
    if there.answer is None:
        raise ProblemError("key-in-use", headers=_retry(1))
    answer = msgspec.msgpack.decode(there.answer, type=RecordedAnswer)
    return msgspec.structs.replace(answer, headers={**answer.headers, REPLAYED: "true"})


async def _first(
    store: Store, tenant_id: str, key: str, digest: str, action: Callable[[str | None], Awaitable[RecordedAnswer]]
) -> RecordedAnswer:
    try:
        answer = await action(await _id_for(store, tenant_id, key, digest))
    except BaseException:  # cancelled too: the next one must not wait for an answer that never comes
        await asyncio.shield(_remember(store, tenant_id, key, digest, None))
        raise
    await asyncio.shield(_remember(store, tenant_id, key, digest, msgspec.msgpack.encode(answer)))
    return answer


async def _id_for(store: Store, tenant_id: str, key: str, digest: str) -> str:
    """Return the id for what this request makes: random, and kept before it is used."""
    made = str(uuid.uuid4())
    # No caller's key has a newline, and what is reserved under this one is the id itself.
    there = await store.reserve(tenant_id, f"{key}\n{digest}", made, IDEMPOTENCY_SECONDS)
    return made if there is None else there.digest


async def _remember(store: Store, tenant_id: str, key: str, digest: str, answer: bytes | None) -> None:
    """Remember an answer. If that fails it is logged: what was done was done, and its caller is to know."""
    try:
        await store.answer(tenant_id, key, digest, answer, IDEMPOTENCY_SECONDS)
    except StoreError as error:
        _logger.warning("the answer to an Idempotency-Key is not kept, a repetition would be carried out: %s", error)
