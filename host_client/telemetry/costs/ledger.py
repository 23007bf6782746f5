"""What every turn cost, in an SQLite file that several processes write at once. Nothing is sampled.

A turn is known by its session and its span, so that one that is told again is not counted again. Money is whole
1e-9 US dollars: sums are exact. The time is the host's, as a sandbox's clock could move a cost to another month.
A turn that has begun is written as an estimate with each of its model requests, as this process may be killed: their
cost at list price, as far as their spans came. The turn's own result takes the place of the estimate.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent_runner.contract.protocol import AnyEvent, Result
from agent_runner.contract.sanitize import single_line
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.turns import MAX_COST_USD, NANO, TurnCost, turn_of

from ._ledger_file import BY, NOTHING, By, LedgerEntry, LedgerError, Total, open_to_write, sums, write
from ._unfinished import TELLING, Spending, parent_of_request

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan
    from host_client.telemetry.tail.pipeline import Who

__all__ = ["BY", "By", "Ledger", "LedgerError", "Total"]

MAX_PENDING = 10_000
"""Turns that wait for a file that cannot be written; older ones are lost."""
MAX_SESSIONS = 10_000
BUSY_SECONDS = 5.0
"""How long another process's write is waited for where a person waits for sums."""
RETRY_SECONDS = 1.0
"""How long after a failure the next try begins, and how long that one waits for other processes."""
_MAX_NAME = 512
_MAX_TURN = 2**31
"""SQLite takes no number above 2**63, and one forged row must not hold up all others."""

_logger = logging.getLogger(__name__)


class Ledger:
    """An `Observer` that writes a row a turn. Never raises but in `totals`: what it cannot write waits, then is lost.

    ``lost`` counts the turns that were given up, ``disagreements`` those whose models' costs did not add up.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lost = 0
        self.disagreements = 0
        self._clock = clock
        self._sessions: OrderedDict[str, tuple[Who, Spending]] = OrderedDict()
        self._pending: deque[LedgerEntry] = deque()
        self._connection: sqlite3.Connection | None = None
        self._mutex = threading.Lock()
        """Guards what waits and who writes; never held while the file is touched."""
        self._retrying: threading.Thread | None = None
        self._closing = threading.Event()
        self._told = False

    # -- what the pipeline calls -----------------------------------------------------------------------

    def begin(self, who: Who, calls: ToolCalls) -> None:
        """Take note of a session's tool calls."""
        self._spending(who).calls = calls

    def _spending(self, who: Who) -> Spending:
        """Return what a session has spent; beyond `MAX_SESSIONS` the oldest is forgotten."""
        if (known := self._sessions.get(who.session_id)) is None:
            known = self._sessions[who.session_id] = who, Spending(ToolCalls())
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return known[1]

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Take note of a model request, for a turn that may never have a result.

        Replayed ones are as good as new: an estimate is of all requests of its turn, whichever process saw them.
        """
        if (parent := parent_of_request(span)) is None:
            return
        who, session = self._sessions.get(str(span.attributes.get("session.id")), (None, None))
        if who is None or session is None or not session.request(parent, span.attributes):
            return
        if not self._pending:  # a file that cannot be written leaves room for turns with a result
            self._estimate(who, session)

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Write a turn that ended; take note of a session's model, and of what turns have begun and ended.

        Replayed events are as good as new: a host that was killed may not have written its turn, and a turn that is in
        the file is not written twice.
        """
        if isinstance(event, Result):
            self.record(event, who)
        if type(event) in TELLING:
            self._spending(who).observe(event)

    def end(self, who: Who) -> None:
        """Write the last estimate of a session's unfinished turns: the session has ended."""
        if (known := self._sessions.pop(who.session_id, None)) is not None:
            self._estimate(who, known[1], is_last=True)

    def _estimate(self, who: Who, session: Spending, *, is_last: bool = False) -> None:
        """Write what the unfinished turns of a session have cost so far."""
        for left in session.so_far():
            figures = left.figures
            if figures.nano > MAX_COST_USD * NANO:
                if is_last:
                    self._lose(1, f"an estimate of {figures.nano / NANO} US dollars")
                figures = NOTHING
            about = (left.span_id, left.trace_id, left.turn)
            self._take(self._entry(who, *about, session.error_type, True, figures))

    def record(self, event: Result, who: Who) -> None:
        """Write a turn that ended; once, however often it is told."""
        known = self._sessions.get(who.session_id)
        try:
            figures = turn_of(event.data, known[1].model if known is not None else None)
        except ValueError as error:
            self._lose(1, str(error))
            return
        if not figures.agrees:
            self.disagreements += 1
        about = (event.span_id, event.trace_id, event.data.turn)
        self._take(self._entry(who, *about, event.data.error_type, False, figures))

    def _entry(
        self, who: Who, span: str, trace: str, turn: int, error_type: str | None, estimated: bool, figures: TurnCost
    ) -> LedgerEntry:
        return LedgerEntry(
            self._clock(),
            _name(who.session_id) or "",
            span,
            trace,
            max(0, min(turn, _MAX_TURN)),
            _name(who.user_id),
            _name(who.tenant_id),
            _name(who.tier),
            error_type,
            estimated,
            figures,
        )

    def close(self, timeout: float) -> bool:
        """Write what waits, trying for so many seconds; return whether nothing was lost."""
        until = time.monotonic() + timeout
        self._closing.set()
        retrying = self._retrying
        if retrying is not None:
            retrying.join(max(0.0, until - time.monotonic()))
        if retrying is None or not retrying.is_alive():
            while self._pending and not self._write(max(0.0, until - time.monotonic())):
                if time.monotonic() + 0.1 > until:
                    break
                time.sleep(0.1)
            self._disconnect()
        with self._mutex:
            self._lose(len(self._pending), "the file could not be written")
            self._pending.clear()
        return not self.lost

    # -- writing ----------------------------------------------------------------------------------------

    def _take(self, entry: LedgerEntry) -> None:
        """Write a turn without waiting for anybody; where that fails, a thread of its own tries again."""
        with self._mutex:
            self._pending.append(entry)
            if len(self._pending) > MAX_PENDING:
                self._pending.popleft()
                self._lose(1, "too many turns wait to be written")
            if self._retrying is not None:
                return
        if not self._write(0.0):
            self._retrying = threading.Thread(target=self._retry, name="sandspan-ledger", daemon=True)
            self._retrying.start()

    def _retry(self) -> None:
        while not self._closing.wait(RETRY_SECONDS):
            written = self._write(RETRY_SECONDS)
            with self._mutex:
                if written and not self._pending:
                    self._retrying = None
                    return

    def _write(self, patience: float) -> bool:
        """Write all that waits, in one transaction; return whether it was written. One thread at a time calls it.

        ``patience`` is how many seconds other processes are waited for.
        """
        with self._mutex:
            entries = list(self._pending)
        try:
            write(self._connected(patience), entries)
        except (sqlite3.Error, OSError, LedgerError) as error:
            self._disconnect()
            if not self._told and (patience or not _is_busy(error)):
                self._told = True
                _logger.warning("costs cannot be written to %s, and are kept in memory: %s", self.path, error)
            return False
        written = set(map(id, entries))
        with self._mutex:
            while self._pending and id(self._pending[0]) in written:
                self._pending.popleft()
        self._told = False
        return True

    def _connected(self, patience: float) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_to_write(self.path, patience)
        self._connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # a corrupt file: it is not used any more
                self._connection.close()
            self._connection = None

    def _lose(self, turns: int, why: str) -> None:
        if turns and not self.lost:
            _logger.warning("the cost of a turn is missing from %s (further ones are counted only): %s", self.path, why)
        self.lost += turns

    # -- reading ----------------------------------------------------------------------------------------

    def totals(self, by: By, since: float | None = None) -> list[Total]:
        """Return the sums, the dearest first, days in their order; ``since`` is in seconds since the epoch.

        Raise `LedgerError` for a file that cannot be read; one that is not there is empty.
        """
        return self._sums(by, since)

    def total(self, since: float | None = None) -> Total:
        """Return the sum of all; see `totals`."""
        return next(iter(self._sums(None, since)), Total(None, 0, 0, 0, 0, 0, 0))

    def _sums(self, by: By | None, since: float | None) -> list[Total]:
        try:
            return sums(self.path, by, since, BUSY_SECONDS) if self.path.exists() else []
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path} cannot be read as a ledger of costs: {error}") from None


def _is_busy(error: Exception) -> bool:
    """Whether another process is writing, which is over in a moment."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _name(value: str | None) -> str | None:
    return single_line(value, _MAX_NAME) if value else None
