"""Store the cost of every turn in an SQLite file that several processes can write at once. Nothing is sampled.

A turn is identified by its session and its span, so that a replayed turn is not counted twice. Money is stored in whole
1e-9 US dollars, so that sums are exact. Times are the host's, because a sandbox's clock could move a cost to another
month. Each model request of an unfinished turn updates an estimate of the turn in the file, because this process may be
killed: the requests' cost at list price, as far as their spans have arrived. The turn's result replaces the estimate.
"""

from __future__ import annotations

import contextlib
import json
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

from ._ledger_file import NOTHING, LedgerEntry, LedgerError, open_to_write, write
from ._unfinished import TELLING, Spending, parent_of_request

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan
    from host_client.telemetry.tail.pipeline import Who

__all__ = ["Ledger", "LedgerError"]

MAX_PENDING = 10_000
"""Maximum number of turns that wait while the file cannot be written; older ones are lost."""

MAX_SESSIONS = 10_000
"""Maximum number of sessions whose unfinished turns are followed."""

RETRY_SECONDS = 1.0
"""Seconds from a failed write to the next try, and seconds that this one waits for the locks of other processes."""

_MAX_NAME = 512
_MAX_TURN = 2**31
"""Maximum of a turn's number. SQLite refuses integers from 2**63, and one forged row must not block the others."""

_logger = logging.getLogger(__name__)


class Ledger:
    """Write one row for each turn, as an `Observer`. Turns wait in memory while the file cannot be written.

    No method raises. ``lost`` counts the turns that were given up, and ``report_loss`` is called with a reason and the
    number of turns.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lost = 0
        self.report_loss: Callable[[str, int], None] = lambda _reason, _turns: None
        self._clock = clock
        self._sessions: OrderedDict[str, tuple[Who, Spending]] = OrderedDict()
        self._pending: deque[LedgerEntry] = deque()
        self._connection: sqlite3.Connection | None = None
        self._mutex = threading.Lock()
        """Guards ``_pending`` and ``_retrying``; never held during access to the file."""
        self._retrying: threading.Thread | None = None
        self._closing = threading.Event()
        self._has_warned = False

    # -- what the pipeline calls -----------------------------------------------------------------------

    def begin(self, who: Who, calls: ToolCalls) -> None:
        """Begin a session; its tool calls tell which turn a model request belongs to."""
        self._spending(who).calls = calls

    def _spending(self, who: Who) -> Spending:
        """Return the unfinished turns of a session, a new object for a new session; the oldest session makes room."""
        if (known := self._sessions.get(who.session_id)) is None:
            known = self._sessions[who.session_id] = who, Spending(ToolCalls())
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return known[1]

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Add a model request to the estimate of its turn.

        Replayed spans count too, because an estimate covers all requests of its turn, whichever process saw them.
        """
        if (parent := parent_of_request(span)) is None:
            return
        who, session = self._sessions.get(str(span.attributes.get("session.id")), (None, None))
        if who is None or session is None or not session.request(parent, span.attributes):
            return
        if not self._pending:  # while the file cannot be written, memory is left for turns with a result
            self._estimate(who, session)

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Write a turn that ended; take note of the session's model and of turns that begin.

        Replayed events count too, because a host that was killed may not have written its turn; a turn that is in the
        file is not written twice.
        """
        if isinstance(event, Result):
            self.record(event, who)
        if type(event) in TELLING:
            self._spending(who).observe(event)

    def end(self, who: Who) -> None:
        """Write the last estimates of a session that has ended."""
        if (known := self._sessions.pop(who.session_id, None)) is not None:
            self._estimate(who, known[1], is_last=True)

    def _estimate(self, who: Who, session: Spending, *, is_last: bool = False) -> None:
        """Write the estimates of a session's unfinished turns."""
        for unfinished in session.so_far():
            figures = unfinished.figures
            if figures.nano > MAX_COST_USD * NANO:
                if is_last:
                    self._lose(1, f"its estimate is impossibly high ({figures.nano / NANO:g} US dollars)")
                figures = NOTHING
            turn = (unfinished.span_id, unfinished.trace_id, unfinished.turn)
            self._add(self._entry(who, *turn, session.error_type, True, figures))

    def record(self, event: Result, who: Who) -> None:
        """Write a turn that ended; a turn that is in the file with its result stays as it is."""
        known = self._sessions.get(who.session_id)
        try:
            figures = turn_of(event.data, known[1].model if known is not None else None)
        except ValueError as error:
            self._lose(1, str(error))
            return
        turn = (event.span_id, event.trace_id, event.data.turn)
        self._add(self._entry(who, *turn, event.data.error_type, False, figures))

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
            _attributes(who),
            estimated,
            figures,
        )

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until no turn waits to be written; return whether none does."""
        if (retrying := self._retrying) is not None:
            retrying.join(timeout)
        return not self._pending

    def close(self, timeout: float) -> bool:
        """Write the waiting turns within ``timeout`` seconds; return whether no turn was lost."""
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
            turns = {entry[1:4] for entry in self._pending if entry.figures != NOTHING}  # a turn may have two entries
            self._lose(len(turns), "the file could not be written before the process ended")
            self._pending.clear()
        return not self.lost

    # -- writing ----------------------------------------------------------------------------------------

    def _add(self, entry: LedgerEntry) -> None:
        """Write a turn without waiting for locks; if that fails, a thread tries again later."""
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
        """Write all waiting turns in one transaction; return whether that succeeded. Called by one thread at a time.

        ``patience`` is the number of seconds to wait for the locks of other processes.
        """
        with self._mutex:
            entries = list(self._pending)
        try:
            write(self._connected(patience), entries)
        except (sqlite3.Error, OSError, LedgerError) as error:
            self._disconnect()
            if not self._has_warned and (patience or not _is_busy(error)):
                self._has_warned = True
                _logger.warning("costs cannot be written to %s, and wait in memory: %s", self.path, error)
            return False
        written = set(map(id, entries))
        with self._mutex:
            while self._pending and id(self._pending[0]) in written:
                self._pending.popleft()
        self._has_warned = False
        return True

    def _connected(self, patience: float) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_to_write(self.path, patience)
        self._connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # raised for a corrupt file, which is not used any more
                self._connection.close()
            self._connection = None

    def _lose(self, turns: int, why: str) -> None:
        if not turns:
            return
        if not self.lost:
            _logger.warning("the cost of a turn is missing from %s (this is logged once): %s", self.path, why)
        self.lost += turns
        self.report_loss("turn: not in the ledger", turns)


def _is_busy(error: Exception) -> bool:
    """Return whether an error means that another process has locked the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _name(value: str | None) -> str | None:
    return single_line(value, _MAX_NAME) if value else None


def _attributes(who: Who) -> str | None:
    """Return the session's own attributes as JSON, None if it has none."""
    attributes = {single_line(name, _MAX_NAME): single_line(value, _MAX_NAME) for name, value in who.attributes.items()}
    return json.dumps(attributes, ensure_ascii=False) if attributes else None
