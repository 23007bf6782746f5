"""Sessions, events and decisions for the tests of the stores."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from host_client.store import Store, open_store
from host_client.store.base import Decision, Note, Root, SessionRecord, SessionState, Status, StoredSession

WAIT_SECONDS = 60.0
"""Maximum number of seconds for any wait."""

ME, OTHER = "replica-1", "replica-2"
ROOT = Root(trace_id="a" * 32, span_id="b" * 16, parent_span_id=None, tracestate="", start=1_700_000_000_000_000_000)


def stored(
    session_id: str, tenant_id: str = "acme", created_at: float = 1_700_000_000.25, **state: object
) -> StoredSession:
    """Return a new session; ``state`` has fields of its state."""
    record = SessionRecord(
        id=session_id,
        tenant_id=tenant_id,
        created_at=created_at,
        created_by="ada",
        title="Mend it",
        root=ROOT,
        request={"prompt": "Mend it: ü 😀", "metadata": {"a": "b"}, "max_budget_usd": 0.1},
    )
    return StoredSession(record, msgspec.structs.replace(SessionState(updated_at=created_at), **state))


async def created(store: Store, session_id: str = "s-1", tenant_id: str = "acme", **fields: object) -> SessionState:
    """Create a session that `ME` owns in the store; return its state."""
    session = stored(session_id, tenant_id, **fields)  # pyright: ignore[reportArgumentType]
    await store.create(session, ME, (), most_open=None)
    return session.state


def texts(first: int, last: int) -> list[bytes]:
    """Return one event for each number, with the number as its content."""
    return [b'{"n":%d}' % number for number in range(first, last + 1)]


async def append(store: Store, state: SessionState, count: int = 1, session_id: str = "s-1") -> SessionState:
    """Append this number of events as `ME`; return the session's state after them."""
    last = state.last_event_id + count
    state = msgspec.structs.replace(state, last_event_id=last)
    await store.append(session_id, ME, texts(last - count + 1, last), state)
    return state


async def close(
    store: Store, session_id: str, state: SessionState, at: float, status: Status = "closed"
) -> SessionState:
    """Close a session as `ME` at a time in seconds since the epoch; return its state."""
    state = msgspec.structs.replace(state, status=status, closed_at=at)
    await store.append(session_id, ME, (), state)
    return state


async def numbers(store: Store, session_id: str = "s-1", after: int = 0) -> list[int]:
    """Return the event numbers in a log after checking that each event contains its own number."""
    entries = await store.read(session_id, after)
    assert [entry.data for entry in entries] == [b'{"n":%d}' % entry.id for entry in entries]
    return [entry.id for entry in entries]


def allow(request_id: str, by: str) -> Decision:
    return Decision(request_id=request_id, decision="allow", decided_by=by, decided_at=1_700_000_001.5)


async def told(inbox: AsyncIterator[Note | bytes], *expected: Note | bytes) -> None:
    """Wait until a subscriber has received all expected notes, in any order and among others."""
    missing = set(expected)
    async with asyncio.timeout(WAIT_SECONDS):
        while missing:
            missing.discard(await anext(inbox))


async def live_until(inbox: AsyncIterator[Note | bytes], last: bytes) -> Sequence[Note | bytes]:
    """Return a subscriber's notes and live events up to a given live event."""
    found: list[Note | bytes] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while not found or found[-1] != last:
            found.append(await anext(inbox))
    return found


@contextmanager
def process(module: str, call: str, place: str) -> Generator[subprocess.Popen[bytes]]:
    """Run a test function with a store's location in a process of its own."""
    code = f"import asyncio, sys; from {module} import {call}; asyncio.run({call}(sys.argv[1]))"
    command = [sys.executable, "-c", code, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
        try:
            yield child
        finally:
            child.kill()


def appending_process(place: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a process that appends events without end and prints the number of each stored one."""
    return process(__name__, "append_for_ever", place)


async def append_for_ever(place: str) -> None:
    store = open_store(place)
    await store.open()
    state = await created(store)
    while True:
        state = await append(store, state)
        os.write(1, b"%d\n" % state.last_event_id)
