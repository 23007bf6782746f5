"""The one module of these tests that names what is not public. Where a module moves, mend the import here and no more.

Everything else here imports `host_client`, `host_client.errors`, `host_client.telemetry`, `host_client.sandbox`,
`host_client.scripted_model`, `agent_runner.protocol` and `tests.support`.
"""

from __future__ import annotations

from host_client.store import Store, open_store
from host_client.store.base import (
    Additions,
    Decision,
    Entry,
    NotOwnerError,
    Queued,
    Remembered,
    Role,
    SessionRecord,
    SessionState,
    Stored,
    Token,
)
from host_client.store.tokens import digest_of

__all__ = [
    "Additions",
    "Decision",
    "Entry",
    "NotOwnerError",
    "Queued",
    "Remembered",
    "Role",
    "SessionRecord",
    "SessionState",
    "Store",
    "Stored",
    "Token",
    "digest_of",
    "open_store",
]
