"""Values of labels, bounded in number and in what they may hold: each new one is a series that stays. Pure."""

from __future__ import annotations

from agent_runner.protocol import ERROR_TYPES
from agent_runner.sanitize import single_line

OTHER = "other"
"""What all values beyond a limit share."""

MAX_TENANTS = 1000
MAX_MODELS = 100
MAX_TOOLS = 100
MAX_TIERS = 20
MAX_REASONS = 100
MAX_LENGTH = 128


class Bounded:
    """Lets the first so many values through; the rest is `OTHER`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the label of a value: one line without control characters, at most 128 characters."""
        label = single_line(value, MAX_LENGTH).strip()
        if label not in self._seen:
            if len(self._seen) >= self._limit:
                return OTHER
            self._seen.add(label)
        return label


def error_type(value: object) -> str:
    """Return the label of an error's type: one that there is, or `OTHER`."""
    return value if value in ERROR_TYPES else OTHER  # pyright: ignore[reportReturnType]


class Labels:
    """The bounds of one set of metrics."""

    def __init__(self, user_limit: int, default_tier: str | None) -> None:
        self._tenant = Bounded(MAX_TENANTS)
        self._tier = Bounded(MAX_TIERS)
        self._user = Bounded(user_limit) if user_limit > 0 else None
        self._default_tier = default_tier
        self.model = Bounded(MAX_MODELS)
        self.tool = Bounded(MAX_TOOLS)
        self.sandbox_kind = Bounded(MAX_TIERS)
        self.reason = Bounded(MAX_REASONS)

    def customer(self, tenant: str | None, tier: str | None) -> dict[str, str]:
        """Return the labels that are on every metric of a session: whose it is."""
        found = {"tenant": self._tenant(tenant)} if tenant else {}
        if tier := tier or self._default_tier:
            found["tier"] = self._tier(tier)
        return found

    def user(self, user: str | None) -> dict[str, str]:
        """Return the label of the cost metric alone."""
        return {"user": self._user(user)} if user and self._user is not None else {}
