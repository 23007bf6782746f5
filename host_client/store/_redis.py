"""The store of a service that runs as several processes: a Redis.

A log is a stream whose ids are the events' numbers, so that no number is written twice. Scripts do what must be atomic.
All keys of one session are in one hash slot, but a Redis Cluster cannot be used: `create`, `expire`, and an `append`
that closes a session or has a cost also use the keys of its tenant and the keys that all tenants share. Costs are whole
1e-9 US dollars.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from . import _redis_keys as names
from . import _redis_scripts as scripts
from ._codec import decode_decision, decode_file, decode_session, decode_token, decode_tokens, encode, encode_file
from ._cursor import page_of, read_cursor
from ._fanout import Inbox
from ._redis_client import RedisClient
from ._redis_keys import SessionKeys, TenantKeys
from ._redis_listener import Listener
from .base import (
    DAY_SECONDS,
    FILE_OVERHEAD,
    LEASE_SECONDS,
    MAX_SPANS_BYTES,
    NANO,
    NO_ADDITIONS,
    OWN_SPANS,
    SPANS_AT_ONCE,
    SPENT_DAYS,
    Additions,
    Decision,
    FilesFullError,
    IdempotentAnswer,
    LogEntry,
    Note,
    NotOwnerError,
    Queued,
    SessionState,
    Status,
    StoredFile,
    StoredSession,
    StoreError,
    Token,
    TooManyError,
    UnknownSessionError,
    log_left_out,
)

VERSION = 1
_PAGE_AT_ONCE = 200
_FORGET_AT_ONCE = 100
_NO_LIMIT = 2**53
"""More than the number of anything; Lua's numbers are exact up to here."""


class RedisStore:
    """A `Store` in a Redis that many processes may use; ``timeout`` is the maximum of seconds for each call."""

    shared = True

    def __init__(self, url: str, *, timeout: float = 5.0, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self._client = RedisClient(url, timeout)
        self._listener = Listener(self._client, timeout)

    async def open(self) -> None:
        await self._client.open()
        try:
            await self._check_version()
        except BaseException:
            await self._client.close()
            raise
        self._listener.start()

    async def _check_version(self) -> None:
        await self._client.call("SET", names.VERSION, VERSION, "NX", again=True)
        version = int(await self._client.call("GET", names.VERSION, again=True) or VERSION)
        if version > VERSION:
            raise StoreError(
                f"{self._client.place} is used by a newer sandspan: upgrade, or choose another store with --store"
            )

    async def close(self) -> None:
        await self._listener.stop()
        await self._client.close()

    async def ping(self) -> None:
        await self._client.call("PING", again=True)

    # -- sessions -----------------------------------------------------------------------------------------

    async def create(
        self, stored: StoredSession, owner: str, commands: Sequence[bytes], *, most_open: int | None
    ) -> None:
        record, state = stored
        keys, tenant = SessionKeys(record.id), TenantKeys(record.tenant_id)
        (answer,) = await self._client.script(
            scripts.CREATE,
            (keys.session, keys.commands, keys.lease, tenant.sessions, tenant.open, names.SESSIONS, names.OPEN),
            (
                record.id,
                owner,
                encode(record),
                encode(state),
                state.status,
                record.tenant_id,
                repr(record.created_at),
                state.last_event_id,
                "" if most_open is None else most_open,
                _milliseconds(self.lease_seconds),
                keys.channel,
                *commands,
            ),
            again=True,
        )
        if answer == b"exists":
            raise StoreError(f"there is a session {record.id} already")
        if answer == b"many":
            assert most_open is not None
            raise TooManyError(most_open)

    async def get(self, session_id: str) -> StoredSession | None:
        (stored,) = await self._stored([session_id])
        return stored

    async def page(
        self, tenant_id: str | None, *, status: Status | None, limit: int, before: str | None
    ) -> tuple[list[StoredSession], str | None]:
        last = read_cursor(before) if before is not None else None
        index = _index(tenant_id, status)
        found: list[StoredSession] = []
        count = _PAGE_AT_ONCE if status is not None else min(_PAGE_AT_ONCE, limit + 1)
        while len(found) <= limit and (rows := await self._rows(index, last, count)):
            sessions = await self._stored([session_id for session_id, _ in rows])
            # None: the session was deleted meanwhile.
            found += [each for each in sessions if each is not None and status in (None, each.state.status)]
            session_id, created_at = rows[-1]
            last = created_at, session_id
        return page_of(found, limit)

    async def _rows(self, index: str, last: tuple[float, str] | None, count: int) -> list[tuple[str, float]]:
        """Return ids and creation times of the sessions after ``last`` in an index, newest first; empty at its end."""
        start = 0
        if last is not None:
            rank, newer = await self._client.call_for_each(
                [("ZREVRANK", index, last[1]), ("ZCOUNT", index, f"({last[0]!r}", "+inf")]
            )
            start = int(newer if rank is None else rank + 1)
        while True:
            answer = await self._client.call("ZREVRANGE", index, start, start + count - 1, "WITHSCORES", again=True)
            rows = [(_text(each), float(at)) for each, at in zip(answer[::2], answer[1::2], strict=True)]
            # Sessions that were created or deleted meanwhile have moved the ranks but not the order.
            following = [(each, at) for each, at in rows if last is None or (at, each) < last]
            if following or not rows:
                return following
            start += len(rows)

    async def _stored(self, session_ids: Sequence[str]) -> list[StoredSession | None]:
        commands = [("HMGET", SessionKeys(each).session, "record", "state") for each in session_ids]
        rows: list[tuple[bytes | None, bytes | None]] = await self._client.call_for_each(commands)
        return [decode_session(record, state) if record and state else None for record, state in rows]

    async def open_sessions(self, tenant_id: str) -> list[StoredSession]:
        rows = await self._client.call("ZRANGE", TenantKeys(tenant_id).open, 0, -1, again=True)
        sessions = await self._stored([_text(each) for each in rows]) if rows else []
        return [each for each in sessions if each is not None]

    async def unfinished(self) -> list[str]:
        session_ids = [_text(each) for each in await self._client.call("ZRANGE", names.OPEN, 0, -1, again=True)]
        living = await self._client.call_for_each([("EXISTS", SessionKeys(each).lease) for each in session_ids])
        return [each for each, is_living in zip(session_ids, living, strict=True) if not is_living]

    # -- ownership ----------------------------------------------------------------------------------------

    async def acquire(self, session_id: str, owner: str) -> bool:
        keys, arguments = self._lease(session_id, owner)
        (answer,) = await self._client.script(scripts.ACQUIRE, keys, arguments, again=True)
        return answer == b"ok"

    async def renew(self, session_ids: Sequence[str], owner: str) -> list[str]:
        if not session_ids:
            return []
        answers = await self._client.script_for_each(scripts.RENEW, [self._lease(each, owner) for each in session_ids])
        return [each for each, (answer,) in zip(session_ids, answers, strict=True) if answer != b"ok"]

    async def release(self, session_id: str, owner: str) -> None:
        keys, arguments = self._lease(session_id, owner)
        await self._client.script(scripts.RELEASE, keys, arguments, again=True)

    def _lease(self, session_id: str, owner: str) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the keys and arguments of the scripts that change a lease."""
        keys = SessionKeys(session_id)
        return (keys.session, keys.lease), (owner, _milliseconds(self.lease_seconds))

    # -- the log ------------------------------------------------------------------------------------------

    async def append(
        self,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions = NO_ADDITIONS,
    ) -> None:
        keys = SessionKeys(session_id)
        nano = round(more.cost_usd * NANO)
        decisions = [part for each in more.decisions for part in (each.request_id, encode(each))]
        answer = await self._client.script(
            scripts.APPEND,
            await self._append_keys(keys, more.day if nano else None, state.is_closed),
            (
                session_id,
                owner,
                secrets.token_bytes(8),
                state.last_event_id,
                encode(state),
                state.status,
                int(state.is_closed),
                "" if state.closed_at is None else repr(state.closed_at),
                state.commands_done,
                keys.channel,
                nano,
                SPENT_DAYS * DAY_SECONDS,
                OWN_SPANS,
                MAX_SPANS_BYTES,
                len(events),
                len(more.spans),
                *events,
                *more.spans,
                *decisions,
            ),
            again=True,
        )
        if answer[0] == b"owner":
            raise NotOwnerError(f"{owner} does not own the session {session_id}")
        if answer[0] == b"number":
            raise NotOwnerError(f"the next event of {session_id} is number {answer[1]}: another process wrote its log")
        if answer[1:]:
            log_left_out(session_id, MAX_SPANS_BYTES)

    async def _append_keys(self, keys: SessionKeys, day: str | None, is_closed: bool) -> tuple[str, ...]:
        """Return the keys of the script APPEND; it uses the tenant's for the spending of a day and for closing."""
        spent, *index = [keys.session] * 4
        if day is not None or is_closed:
            tenant_id = await self._client.call("HGET", keys.session, "tenant", again=True)
            if tenant_id is None:
                raise NotOwnerError(f"there is no session {keys.id}")
            tenant = TenantKeys(_text(tenant_id))
            spent = tenant.spent(day) if day is not None else spent
            index = [tenant.open, names.OPEN, names.CLOSED] if is_closed else index
        return (keys.session, keys.events, keys.spans, keys.commands, keys.decisions, spent, *index)

    async def read(
        self, session_id: str, after: int, *, limit: int = 1000, max_bytes: int = 4 * 1024 * 1024
    ) -> list[LogEntry]:
        return [LogEntry(*pair) for pair in await self._read(SessionKeys(session_id).events, after, limit, max_bytes)]

    async def _read(self, stream: str, after: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        answer = await self._client.script(scripts.READ, (stream,), (after, limit, max_bytes), again=True)
        return list(zip(answer[::2], answer[1::2], strict=True))

    async def oldest(self, session_id: str) -> int:
        keys = SessionKeys(session_id)
        return await self._client.script(scripts.OLDEST, (keys.session, keys.events), (), again=True)

    async def spans(self, session_id: str) -> AsyncIterator[bytes]:
        key, start = SessionKeys(session_id).spans, 0
        while spans := await self._client.call("LRANGE", key, start, start + SPANS_AT_ONCE - 1, again=True):
            for data in spans:
                yield data
            start += len(spans)

    # -- notes, live events, commands and decisions -------------------------------------------------------

    def subscribe(self, session_id: str, *, only: Note | None = None) -> AbstractAsyncContextManager[Inbox]:
        return self._listener.subscribe(session_id, only)

    async def publish(self, session_id: str, data: bytes) -> None:
        await self._client.call("PUBLISH", SessionKeys(session_id).channel, b"L" + data)

    async def push(self, session_id: str, data: bytes) -> int:
        keys = SessionKeys(session_id)
        answer = await self._client.script(scripts.PUSH, (keys.session, keys.commands), (keys.channel, data))
        _check_known(answer, session_id)
        return answer[1]

    async def commands(self, session_id: str, after: int) -> list[Queued]:
        stream = SessionKeys(session_id).commands
        return [Queued(*pair) for pair in await self._read(stream, after, _NO_LIMIT, _NO_LIMIT)]

    async def decide(self, session_id: str, decision: Decision, command: bytes | None) -> Decision | None:
        keys = SessionKeys(session_id)
        answer = await self._client.script(
            scripts.DECIDE,
            (keys.session, keys.commands, keys.decisions),
            (decision.request_id, encode(decision), keys.channel, *([command] if command is not None else [])),
            again=True,
        )
        _check_known(answer, session_id)
        return decode_decision(answer[1]) if answer[0] == b"first" else None

    async def decision(self, session_id: str, request_id: str) -> Decision | None:
        data = await self._client.call("HGET", SessionKeys(session_id).decisions, request_id, again=True)
        return decode_decision(data) if data is not None else None

    # -- files --------------------------------------------------------------------------------------------

    async def put_file(
        self, tenant_id: str, file_id: str, file: StoredFile, seconds: float, *, most_bytes: int | None
    ) -> None:
        tenant = TenantKeys(tenant_id)
        (answer,) = await self._client.script(
            scripts.PUT_FILE,
            (tenant.file(file_id), tenant.files, tenant.file_sizes),
            (
                file_id,
                encode_file(file),
                len(file.data) + FILE_OVERHEAD,
                _milliseconds(seconds),
                "" if most_bytes is None else most_bytes,
            ),
            again=True,
        )
        if answer == b"full":
            assert most_bytes is not None
            raise FilesFullError(most_bytes)

    async def file(self, tenant_id: str, file_id: str) -> StoredFile | None:
        return decode_file(await self._client.call("GET", TenantKeys(tenant_id).file(file_id), again=True))

    async def remove_files(self, tenant_id: str, file_ids: Sequence[str]) -> None:
        tenant = TenantKeys(tenant_id)
        calls = [((tenant.file(each), tenant.files, tenant.file_sizes), (each,)) for each in file_ids]
        await self._client.script_for_each(scripts.REMOVE_FILE, calls)

    # -- limits -------------------------------------------------------------------------------------------

    async def reserve(self, tenant_id: str, key: str, digest: str, seconds: float) -> IdempotentAnswer | None:
        name = TenantKeys(tenant_id).answer(key)
        answer = await self._client.script(scripts.RESERVE, (name,), (digest, _milliseconds(seconds)))
        return IdempotentAnswer(_text(answer[1]), answer[2]) if answer[0] == b"first" else None

    async def answer(self, tenant_id: str, key: str, digest: str, answer: bytes | None, seconds: float) -> None:
        name = TenantKeys(tenant_id).answer(key)
        arguments = (digest, _milliseconds(seconds), *([answer] if answer is not None else []))
        await self._client.script(scripts.ANSWER, (name,), arguments, again=True)

    async def count(self, tenant_id: str, what: str, window: float) -> int:
        return await self._client.script(scripts.COUNT, (TenantKeys(tenant_id).count(what),), (repr(window),))

    async def spent(self, tenant_id: str, day: str) -> float:
        return int(await self._client.call("GET", TenantKeys(tenant_id).spent(day), again=True) or 0) / NANO

    # -- tokens -------------------------------------------------------------------------------------------

    async def add_token(self, token: Token) -> None:
        await self._client.call_for_each(
            [
                ("HSET", names.TOKEN_DIGESTS, token.id, token.digest),
                ("HSET", names.TOKENS, token.digest, encode(token)),
            ]
        )

    async def find_token(self, digest: str) -> Token | None:
        return decode_token(await self._client.call("HGET", names.TOKENS, digest, again=True))

    async def tokens(self) -> list[Token]:
        return decode_tokens(await self._client.call("HVALS", names.TOKENS, again=True))

    async def remove_token(self, token_id: str) -> bool:
        keys = (names.TOKENS, names.TOKEN_DIGESTS)
        return bool(await self._client.script(scripts.DROP_DIGEST, keys, (token_id,)))

    # -- retention ----------------------------------------------------------------------------------------

    async def expire(self, before: float) -> int:
        total = 0
        query = ("ZRANGEBYSCORE", names.CLOSED, "-inf", f"({before!r}", "LIMIT", 0, _FORGET_AT_ONCE)
        while session_ids := [_text(each) for each in await self._client.call(*query, again=True)]:
            every = [SessionKeys(each) for each in session_ids]
            tenants = await self._client.call_for_each([("HGET", keys.session, "tenant") for keys in every])
            calls: list[tuple[Sequence[str], Sequence[Any]]] = []
            for keys, tenant_id in zip(every, tenants, strict=True):
                # None: another process has deleted the session just now.
                of_tenant = TenantKeys(_text(tenant_id)).sessions if tenant_id is not None else names.SESSIONS
                calls.append(((*keys.all, names.CLOSED, of_tenant, names.SESSIONS), (keys.id,)))
            total += sum(await self._client.script_for_each(scripts.EXPIRE, calls))
        return total

    async def trim(self, session_id: str, keep: int) -> None:
        keys = SessionKeys(session_id)
        await self._client.script(scripts.TRIM, (keys.session, keys.events), (keep,), again=True)


def _index(tenant_id: str | None, status: Status | None) -> str:
    """Return the smallest sorted set with all sessions of a status: few sessions are open."""
    is_open = status not in (None, "closed", "failed")
    if tenant_id is None:
        return names.OPEN if is_open else names.SESSIONS
    return TenantKeys(tenant_id).open if is_open else TenantKeys(tenant_id).sessions


def _check_known(answer: Sequence[Any], session_id: str) -> None:
    if answer[0] == b"unknown":
        raise UnknownSessionError(f"there is no session {session_id}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(data: bytes) -> str:
    return data.decode()
