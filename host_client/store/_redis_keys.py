"""The names of what the service keeps in a Redis. Pure.

All begin with `sandspan:`. What is in braces decides the hash slot of a cluster: one for each session, one for each
tenant, one for what all share.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

SESSIONS = "sandspan:{all}:sessions"
"""Sorted by their creation, like `OPEN`, those that are not closed; `CLOSED` by their end."""
OPEN = "sandspan:{all}:open"
CLOSED = "sandspan:{all}:closed"
VERSION = "sandspan:{all}:version"
TOKENS = "sandspan:{tokens}:by-digest"
TOKEN_DIGESTS = "sandspan:{tokens}:digests"  # noqa: S105 - a name


@dataclass(frozen=True)
class SessionKeys:
    """Those of one session."""

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
        """Where notes are published: `E` events, `C` commands, `L` and a live event."""
        return self._name("notes")

    @property
    def all(self) -> list[str]:
        return [self.session, self.lease, self.events, self.spans, self.commands, self.decisions]

    def _name(self, what: str) -> str:
        return f"sandspan:{{{quote(self.id, safe='')}}}:{what}"


@dataclass(frozen=True)
class TenantKeys:
    """Those of one tenant, whose id may be any text."""

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
