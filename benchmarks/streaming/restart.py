"""Measure the start of a service with sessions in its store: closed ones, and open ones that a dead process left."""

from __future__ import annotations

import asyncio
import http.client
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from host_client.client.session import Whereabouts
from host_client.sandbox import SandboxInfo
from host_client.store._sqlite import SqliteStore
from host_client.store.base import SandboxRef, SessionRecord, SessionState, StoredSession
from host_client.telemetry import root_of

from .processes import Server, server

EVENTS = 50
"""Number of events of each stored session."""

LIMIT_SECONDS = 120.0
POLL_SECONDS = 0.005


class Started(NamedTuple):
    """Seconds from the process's start until it is ready and until all open sessions were reported; CPU seconds."""

    ready: float
    settled: float
    cpu: float


def start(sessions: int, *, is_open: bool) -> Started:
    """Fill a store with sessions and start a service on it; return the durations."""
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        asyncio.run(_fill(Path(folder, "service.sqlite"), sessions, is_open))
        began = time.perf_counter()
        with server("service", Path(folder), events=0, rate=0.0) as started:
            _wait(started, "/readyz", b"ok")
            ready = time.perf_counter()
            _wait(started, "/api/sessions?status=starting&limit=1", b'"sessions":[]')
            _wait(started, "/api/sessions?status=idle&limit=1", b'"sessions":[]')
            return Started(ready - began, time.perf_counter() - began, started.cpu)


def _wait(of: Server, path: str, wanted: bytes) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", of.port, timeout=LIMIT_SECONDS)
        connection.request("GET", path)
        text = connection.getresponse().read()
        connection.close()
        if wanted in text:
            return
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"{path} never answered {wanted!r}")


async def _fill(path: Path, sessions: int, is_open: bool) -> None:
    store = SqliteStore(path)
    await store.open()
    lines = [b'{"type":"text","v":1,"ts":1.0,"data":{"text":"%b"}}' % (b"x" * 200)] * EVENTS
    await asyncio.gather(*(_keep(store, number, lines, is_open) for number in range(sessions)))
    await store.close()


async def _keep(store: SqliteStore, number: int, lines: Sequence[bytes], is_open: bool) -> None:
    session_id, root = f"session-{number}", root_of()
    record = SessionRecord(
        id=session_id, tenant_id="local", created_at=float(number), created_by="bench", title="go", root=root,
        request={"prompt": "go"},
    )  # fmt: skip
    await store.create(StoredSession(record, SessionState()), "bench", [], most_open=None)
    info = SandboxInfo(id=session_id, kind="socket", work="/", journal="/dev/null")
    where = Whereabouts(run_id="r", info=info, process_id="1", trace_ids=(root.trace_id,))
    state = SessionState(
        status="idle" if is_open else "closed",
        started=True,
        closed_at=None if is_open else time.time(),
        last_event_id=len(lines),
        sandbox=SandboxRef(id=session_id, kind="socket"),
        whereabouts=msgspec.to_builtins(where),
    )
    await store.append(session_id, "bench", lines, state)
