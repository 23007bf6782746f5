"""Rules for texts that come from a sandbox: one line, bounded, without secrets, under no name that the host owns. Pure.

The runner follows the same rules. They are applied again because any program in the sandbox can write to its stdout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from agent_runner.contract.genai import CONTENT, MESSAGES, message, read_message
from agent_runner.contract.sanitize import brief, full, redact, single_line

MAX_ATTRIBUTES = 128
"""Limit of attributes on a span or an event: OpenTelemetry's own default."""

MAX_EVENTS = 128
"""Limit of events on a span: OpenTelemetry's own default."""

MAX_ITEMS = 128
"""Limit of items in a list."""

MAX_TEXT = 1024
"""Limit of characters in a text."""

MAX_CONTENT = 256 * 1024
"""Limit of characters in a prompt, an answer or arguments of a tool: the JSON of the longest text of a runner."""

OWNED = frozenset({"user.id", "tenant.id", "session.id", "user.tier"})
"""Attributes that only the host sets: backends show and bill a span by them."""

_OWNED_PREFIXES = ("langfuse.", "gen_ai.usage.cost", "ai.telemetry.metadata.", "tag.tags")
"""Beginnings of attributes that a backend reads as the user or the cost, and that no runner sends."""

_HOST_SPANS = frozenset({"agent.session", "sandbox.create", "sandbox.cleanup"})
"""Names of spans that only the host makes: backends show a whole run by the first."""

_RESOURCE_ATTRIBUTES = frozenset(
    {"service.name", "service.version", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"}
)

_LOOK_AHEAD = 8192
"""Characters that are searched beyond a cut: a secret that the cut would split is only recognised as a whole."""

_MAX_CACHED_NAME = 128


def span_name(text: str) -> str:
    """Return the name of a span; names that only the host's spans have get a prefix."""
    cleaned = brief(text)
    return f"relayed {cleaned}" if cleaned in _HOST_SPANS else cleaned


def resource(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the resource attributes that say which program made the spans."""
    return {key: brief(value) for key, value in pairs if key in _RESOURCE_ATTRIBUTES and value}


def attribute(key: str) -> str:
    """Return the name of an attribute, empty if only the host may set it."""
    return _cached_attribute(key) if len(key) <= _MAX_CACHED_NAME else _attribute(key)


def _attribute(key: str) -> str:
    cleaned = brief(key).strip()
    return "" if cleaned in OWNED or cleaned.startswith(_OWNED_PREFIXES) else cleaned


# Every span has the same dozen names, and searching them for secrets is a third of cleaning a span
# (`benchmarks/relay.py`).
_cached_attribute = lru_cache(2048, typed=True)(_attribute)


def said(attribute: str, value: str, given: Collection[str]) -> str:
    """Return the text of an attribute; the ``given`` texts come from the host and stay as they are."""
    if value in given:
        return value
    return _content(attribute, value) if attribute in CONTENT else text(value)


def _content(attribute: str, value: str) -> str:
    cleaned = text(value, MAX_CONTENT)
    if cleaned == value or attribute not in MESSAGES or (read := read_message(value)) is None:
        return cleaned
    # Cutting a secret out of serialized JSON can break it, so the text inside is cleaned and serialized anew.
    role, content = read
    return single_line(message(brief(role), full(content)), MAX_CONTENT)


def text(value: str, limit: int = MAX_TEXT) -> str:
    """Return a text in one line, redacted and cut."""
    return single_line(redact(value[: limit + _LOOK_AHEAD]), limit)
