"""Limits of tenants, and idempotent requests, both kept in the store."""

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

from agent_runner.contract.attachments import MAX_BYTES
from host_client.store.base import DAY_SECONDS, Store, StoredSession, StoreError
from host_client.telemetry.costs.dollars import total_usd

from ._problems import ProblemError

RATE_WINDOW = 60.0
"""Seconds in which turns and uploads are counted."""
IDEMPOTENCY_SECONDS = 24 * 3600.0
IN_FLIGHT_SECONDS = 300.0
"""Seconds for which a key stays reserved if its process dies: longer than any action of a route takes."""
PROMISED_SECONDS = 60.0
"""Seconds after which to try again if open sessions hold the whole budget: one may have been closed."""
_SMALLEST_USD = 1e-9
REPLAYED = "idempotent-replayed"

_KEY = re.compile(r"[ -~]{1,255}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Limits of a tenant, session or request; None is no limit. A test compares them with the documented table."""

    max_body: int = 1024 * 1024
    """Maximum bytes of a request's body, unless it may have attachments."""
    max_attached_body: int = 15 * 1024 * 1024
    """Maximum bytes of a body that may have attachments: all that a prompt may have, in base64, and the rest."""
    max_file: int = MAX_BYTES
    """Maximum bytes of an upload."""
    max_prompt: int = 100_000
    """Maximum characters of a prompt or a turn's text."""
    sessions_per_tenant: int | None = 100
    """Maximum open sessions of a tenant."""
    turns_per_minute: int | None = 60
    """Maximum turns of a tenant in a minute, including the first turns of sessions."""
    uploads_per_minute: int | None = 120
    """Maximum uploads of a tenant in a minute."""
    file_bytes_per_tenant: int | None = 1024 * 1024 * 1024
    """Maximum bytes of a tenant's uploads and attachments that are stored; each counts 4 KiB more."""
    usd_per_tenant_day: float | None = None
    """US dollars that a tenant's turns may cost in a day (UTC); budgets of open sessions count as spent."""
    readers_per_session: int | None = 1000
    """Maximum open streams of one session in one process."""
    readers_per_tenant: int | None = 2000
    """Maximum open streams of all sessions of a tenant in one process."""


def day_of(now: float) -> str:
    """Return the day (UTC) of a time in seconds since the epoch as `YYYY-MM-DD`."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def check_prompt(text: str, limits: ServiceLimits) -> None:
    """Raise `ProblemError` (422) for a text that is too long."""
    if len(text) > limits.max_prompt:
        what = f"must have at most {limits.max_prompt} characters, not {len(text)}"
        raise ProblemError("invalid", f"the text {what}", errors=[{"where": "body", "what": what}])


async def check_turn(store: Store, tenant_id: str, limits: ServiceLimits, now: float | None = None) -> None:
    """Count a turn; raise `ProblemError` (429) if the tenant has too many in this minute."""
    await _check_rate(store, tenant_id, "turns", limits.turns_per_minute, now)


async def check_upload(store: Store, tenant_id: str, limits: ServiceLimits, now: float | None = None) -> None:
    """Count an upload; raise `ProblemError` (429) if the tenant has too many in this minute."""
    await _check_rate(store, tenant_id, "uploads", limits.uploads_per_minute, now)


async def _check_rate(store: Store, tenant_id: str, what: str, most: int | None, now: float | None) -> None:
    if most is not None and await store.count(tenant_id, what, RATE_WINDOW) > most:
        wait = RATE_WINDOW - (time.time() if now is None else now) % RATE_WINDOW
        raise ProblemError(f"too-many-{what}", f"{most} {what} a minute are allowed", headers=_retry(wait), limit=most)


async def check_budget(store: Store, tenant_id: str, limits: ServiceLimits, now: float | None = None) -> float:
    """Return the US dollars that the tenant has left of its budget of this day (UTC), infinite without a budget.

    Raise `ProblemError` (429) if it has spent all of it.
    """
    if limits.usd_per_tenant_day is None:
        return math.inf
    now = time.time() if now is None else now
    left = total_usd(limits.usd_per_tenant_day, -await store.spent(tenant_id, day_of(now)))
    if left <= 0:
        detail = f"the tenant has spent its ${limits.usd_per_tenant_day:.10g} of this day (UTC)"
        wait = DAY_SECONDS - now % DAY_SECONDS
        raise ProblemError("budget-exceeded", detail, headers=_retry(wait), limit_usd=limits.usd_per_tenant_day)
    return left


async def budget_of(
    store: Store, tenant_id: str, limits: ServiceLimits, requested: float | None, now: float | None = None
) -> float | None:
    """Return the budget of a new session in US dollars: the requested one, or less if the tenant has less left.

    None is no limit. A tenant has left what it has neither spent on this day (UTC) nor promised to its open sessions.
    Raise `ProblemError` (429) if nothing is left. Call this for one new session of a tenant at a time.
    """
    if limits.usd_per_tenant_day is None:
        return requested
    # Promises are read first: money spent meanwhile then counts twice; in the other order it would not count at all.
    promises = [_promised(each) for each in await store.open_sessions(tenant_id)]
    unspent = await check_budget(store, tenant_id, limits, now)
    left = 0.0 if math.inf in promises else total_usd(unspent, *(-each for each in promises))
    if left < _SMALLEST_USD:
        detail = (
            f"open sessions may spend the rest of the tenant's ${limits.usd_per_tenant_day:.10g} of this day (UTC):"
            " close one, or create sessions with a max_budget_usd"
        )
        headers = _retry(PROMISED_SECONDS)
        raise ProblemError("budget-exceeded", detail, headers=headers, limit_usd=limits.usd_per_tenant_day)
    return left if requested is None else min(left, requested)


def _promised(stored: StoredSession) -> float:
    """Return the US dollars that an open session may still spend; infinite if it has no budget."""
    budget = stored.record.request.get("max_budget_usd")
    return math.inf if budget is None else max(0.0, budget - stored.state.cost_usd)


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


# -- idempotency -------------------------------------------------------------------------------------------


class RecordedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is stored to be repeated: its status, JSON body and own headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}

    def response(self) -> Response:
        return Response(self.body, self.status, dict(self.headers), media_type="application/json")


def request_digest(method: str, path: str, body: bytes) -> str:
    """Return a digest that is the same only for the same request."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode("utf-8", "replace"), body))).hexdigest()


async def idempotent(
    store: Store,
    tenant_id: str,
    key: str | None,
    digest: str,
    action: Callable[[str | None], Awaitable[RecordedAnswer]],
) -> RecordedAnswer:
    """Carry out an action once for a key and repeat its answer for 24 hours; without a key, carry it out each time.

    The action gets the id for the object that it creates, which is the same for every attempt with this key: if an
    earlier attempt was killed before its answer was stored, the action finds the object. Without a key it gets None.

    Raise `ProblemError`: 409 while the first request is being carried out, 422 for the key of another request, 400 for
    a malformed key. If the action raises, the key is free again.
    """
    if key is None:
        return await action(None)
    if _KEY.fullmatch(key) is None:
        raise ProblemError("bad-request", "an Idempotency-Key must have 1 to 255 printable ASCII characters")
    earlier = await store.reserve(tenant_id, key, digest, IN_FLIGHT_SECONDS)
    if earlier is None:
        return await _first(store, tenant_id, key, digest, action)
    if earlier.digest != digest:
        raise ProblemError("key-reused", "this Idempotency-Key was used with another request: use a new one")
    if earlier.answer is None:
        raise ProblemError("key-in-use", headers=_retry(1))
    answer = msgspec.msgpack.decode(earlier.answer, type=RecordedAnswer)
    return msgspec.structs.replace(answer, headers={**answer.headers, REPLAYED: "true"})


async def _first(
    store: Store, tenant_id: str, key: str, digest: str, action: Callable[[str | None], Awaitable[RecordedAnswer]]
) -> RecordedAnswer:
    try:
        answer = await action(await _id_for(store, tenant_id, key, digest))
    except BaseException:  # also if cancelled: the next request must not be refused until the key expires
        await asyncio.shield(_remember(store, tenant_id, key, digest, None))
        raise
    await asyncio.shield(_remember(store, tenant_id, key, digest, msgspec.msgpack.encode(answer)))
    return answer


async def _id_for(store: Store, tenant_id: str, key: str, digest: str) -> str:
    """Return the id for the object that a request creates: a random one, stored before it is used."""
    new = str(uuid.uuid4())
    # A caller's key has no newline, so this key is free. The id is stored in the place of a digest.
    earlier = await store.reserve(tenant_id, f"{key}\n{digest}", new, IDEMPOTENCY_SECONDS)
    return new if earlier is None else earlier.digest


async def _remember(store: Store, tenant_id: str, key: str, digest: str, answer: bytes | None) -> None:
    """Store an answer; only log a failure, as the action was carried out and its caller must get the answer."""
    try:
        await store.answer(tenant_id, key, digest, answer, IDEMPOTENCY_SECONDS)
    except StoreError as error:
        _logger.warning(
            "the answer to an Idempotency-Key is not stored, so a repeated request is carried out again: %s", error
        )
