"""A service that is killed before it has written a span of a given name to its spool.

Run as a module with the span's name and a moment, which the arguments of ``host_client`` follow. The span is not
written before the moment has come: its log (``log``) has the span if it is one of the host's own, or the sandbox was
removed (``sandbox``). The service is killed then, or earlier if it begins to wait for its spool.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence

from host_client.__main__ import main
from host_client.sandbox.e2b import E2BSandbox
from host_client.store._sqlite import SqliteStore
from host_client.store.base import NO_ADDITIONS, OWN_SPANS, Additions, SessionState
from host_client.telemetry import Telemetry
from host_client.telemetry.batch import Batch
from host_client.telemetry.export.spool import Spool


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_awaited(name: bytes) -> None:
    """Kill this process once it waits for its spool, which is not to have a span of this name before."""
    changed, waiting = threading.Condition(), list[float]()
    put, write = Spool.put, Telemetry.write

    def put_or_die(self: Spool, batches: Sequence[Batch], destinations: Iterable[str]) -> None:
        if any(name in batch.body for batch in batches):
            with changed:
                changed.wait_for(lambda: bool(waiting))
            die()
        put(self, batches, destinations)

    def noted_write(self: Telemetry, timeout: float) -> bool:
        with changed:
            waiting.append(timeout)
            changed.notify_all()
        try:
            return write(self, timeout)
        finally:
            with changed:
                waiting.remove(timeout)

    Spool.put = put_or_die
    Telemetry.write = noted_write


def die_when_logged(name: bytes) -> None:
    """Kill this process once its store has an own span of this name."""
    append = SqliteStore.append

    async def append_and_die(
        self: SqliteStore,
        session_id: str,
        owner: str,
        events: Sequence[bytes],
        state: SessionState,
        more: Additions = NO_ADDITIONS,
    ) -> None:
        await append(self, session_id, owner, events, state, more)
        if any(body.startswith(OWN_SPANS) and name in body for body in more.spans):
            die()

    SqliteStore.append = append_and_die


def die_when_removed() -> None:
    """Kill this process once it has removed a sandbox."""
    close = E2BSandbox.close

    async def close_and_die(self: E2BSandbox) -> None:
        await close(self)
        die()

    E2BSandbox.close = close_and_die


if __name__ == "__main__":
    _, span_name, moment, *arguments = sys.argv
    sys.argv = ["host_client", *arguments]
    die_when_awaited(span_name.encode())
    if moment == "log":
        die_when_logged(span_name.encode())
    else:
        die_when_removed()
    main()
