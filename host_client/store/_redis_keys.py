"""The names of the service's keys in a Redis. Pure.

All names begin with `sandspan:`. The part in braces decides the hash slot in a cluster: there is one for each session,
one for each tenant, and one for the keys that all tenants share.
"""

from __future__ import annotations

from urllib.parse import quote

SESSIONS = "sandspan:{all}:sessions"
"""The ids of all sessions, sorted by creation time."""
OPEN = "sandspan:{all}:open"
"""The ids of the sessions that are not closed, sorted by creation time."""
CLOSED = "sandspan:{all}:closed"
"""The ids of the closed sessions, sorted by the time of closing."""
VERSION = "sandspan:{all}:version"
TOKENS = "sandspan:{tokens}:by-digest"
TOKEN_DIGESTS = "sandspan:{tokens}:digests"  # noqa: S105 - a key's name


class SessionKeys:
    """The keys of one session."""

    def __init__(self, session_id: str) -> None:
        prefix = f"sandspan:{{{quote(session_id, safe='')}}}"
        self.id = session_id
        self.session = f"{prefix}:session"
        self.lease = f"{prefix}:lease"
        self.events = f"{prefix}:events"
        self.spans = f"{prefix}:spans"
        self.commands = f"{prefix}:commands"
        self.decisions = f"{prefix}:decisions"
        self.all = (self.session, self.lease, self.events, self.spans, self.commands, self.decisions)
        self.channel = f"{prefix}:notes"
        """The channel of notes: `E` for events, `C` for commands, and live events, each after an `L`."""


class TenantKeys:
    """The keys of one tenant, whose id may be any text."""

    def __init__(self, tenant_id: str) -> None:
        self._prefix = f"sandspan:{{tenant:{quote(tenant_id, safe='')}}}"
        self.sessions = f"{self._prefix}:sessions"
        self.open = f"{self._prefix}:open"
        self.files = f"{self._prefix}:files"
        """The ids of the tenant's files, sorted by the time at which each expires."""
        self.file_sizes = f"{self._prefix}:file-sizes"
        """The size of each file by its id, and the sum of all sizes under the empty id."""

    def spent(self, day: str) -> str:
        return f"{self._prefix}:spent:{day}"

    def file(self, file_id: str) -> str:
        return f"{self._prefix}:file:{file_id}"

    def answer(self, key: str) -> str:
        return f"{self._prefix}:answer:{key}"

    def count(self, what: str) -> str:
        return f"{self._prefix}:count:{what}"
