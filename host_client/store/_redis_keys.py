"""The names of the service's keys in a Redis. Pure.

All names begin with `sandspan:`. The part in braces decides the hash slot in a cluster: there is one for each session,
one for each tenant, and one for the keys that all tenants share.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class SessionKeys:
    """The keys of one session."""

    id: str

    @property
    def session(self) -> str:
        return self._name("session")

    @property
    def lease(self) -> str:
        return self._name("lease")

    @property
    def events(self) -> str:
        return self._name("events")

    @property
    def spans(self) -> str:
        return self._name("spans")

    @property
    def commands(self) -> str:
        return self._name("commands")

    @property
    def decisions(self) -> str:
        return self._name("decisions")

    @property
    def channel(self) -> str:
        """The channel of notes: `E` for events, `C` for commands, and live events, each after an `L`."""
        return self._name("notes")

    @property
    def all(self) -> list[str]:
        return [self.session, self.lease, self.events, self.spans, self.commands, self.decisions]

    def _name(self, what: str) -> str:
        return f"sandspan:{{{quote(self.id, safe='')}}}:{what}"


@dataclass(frozen=True)
class TenantKeys:
    """The keys of one tenant, whose id may be any text."""

    id: str

    @property
    def sessions(self) -> str:
        return self._name("sessions")

    @property
    def open(self) -> str:
        return self._name("open")

    def spent(self, day: str) -> str:
        return self._name("spent", day)

    def answer(self, key: str) -> str:
        return self._name("answer", key)

    def count(self, what: str) -> str:
        return self._name("count", what)

    def _name(self, *parts: str) -> str:
        return ":".join((f"sandspan:{{tenant:{quote(self.id, safe='')}}}", *parts))
