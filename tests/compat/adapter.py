"""The only module of the compatibility tests that imports private names; if a module moves, change only this file.

The other modules import `host_client`, `host_client.errors`, `host_client.telemetry`, `host_client.sandbox`,
`host_client.scripted_model`, `agent_runner.contract.protocol` and `tests.support`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from host_client import Session, events
from host_client.client.agent import result_of
from host_client.store import Store, open_store
from host_client.store.base import (
    Additions,
    Decision,
    IdempotentAnswer,
    LogEntry,
    NotOwnerError,
    Queued,
    Role,
    SessionRecord,
    SessionState,
    StoredSession,
    Token,
)
from host_client.store.tokens import digest_of
from host_client.telemetry import Who
from host_client.telemetry.costs.ledger import Ledger as _Ledger
from host_client.telemetry.export.spool import Spool

__all__ = [
    "Additions",
    "Decision",
    "IdempotentAnswer",
    "Ledger",
    "LogEntry",
    "NotOwnerError",
    "Queued",
    "Role",
    "SessionRecord",
    "SessionState",
    "Store",
    "StoredSession",
    "Token",
    "digest_of",
    "open_store",
    "outcome_of",
    "set_spool_clock",
]


class Ledger:
    """Records the events of turns in a ledger; the caller's clock gives seconds since the epoch."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._ledger = _Ledger(path, clock=clock)

    def note(
        self, event: events.AnyEvent, session_id: str, user: str | None, tenant: str | None, tier: str | None
    ) -> None:
        """Record an event of a session's runner with the session's user, tenant and tier."""
        who = Who(session_id=session_id, user_id=user, tenant_id=tenant, tier=tier)
        self._ledger.observe(event, who)

    def close(self) -> bool:
        """Write all buffered records and close; return whether everything was written."""
        return self._ledger.close(60.0)


def set_spool_clock(clock: Callable[[], float]) -> None:
    """Set the clock of all spools of this process; only the recorders use it."""
    defaults = Spool.__init__.__kwdefaults__
    assert defaults is not None
    defaults["now"] = clock


NOT_RECORDED = ("spans", "tool_calls", "denied_calls", "denied_tools")


def outcome_of(session: Session) -> dict[str, Any]:
    """Return the fields of a closed session's result that the recorded results have."""
    result = result_of(session)
    return {each.name: getattr(result, each.name) for each in fields(result) if each.name not in NOT_RECORDED}
