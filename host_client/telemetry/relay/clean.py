"""Clean the texts of spans from a sandbox: one line, limited, without secrets, and no names that the host owns. Pure.

The runner follows the same rules. They are applied again because any program in the sandbox can write to its stdout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from agent_runner.contract.genai import CACHE_WRITE, CONTENT, MESSAGES
from agent_runner.contract.messages import with_texts
from agent_runner.contract.ownership import HOST_SPANS, OF_THE_HOST, OF_THE_HOST_PREFIXES, PROGRAM
from agent_runner.contract.sanitize import brief, full, redacted_line, single_line
from host_client.telemetry.conventions import CACHE_WRITE_BEFORE

MAX_ATTRIBUTES = 128
"""Maximum number of attributes of a span or an event: OpenTelemetry's own default."""

MAX_EVENTS = 128
"""Maximum number of events of a span: OpenTelemetry's own default."""

MAX_ITEMS = 128
"""Maximum number of items in a list."""

MAX_TEXT = 1024
"""Maximum number of characters in a text."""

MAX_CONTENT = 256 * 1024
"""Maximum number of characters in a prompt, an answer or a tool's arguments: the JSON of a runner's longest text."""

_MAX_CACHED_NAME = 128

_RENAMED = {CACHE_WRITE_BEFORE: CACHE_WRITE}
"""Attributes of older runners, by their names in later conventions."""


def span_name(text: str) -> str:
    """Clean the name of a span; names of the host's own spans get a prefix."""
    cleaned = brief(text)
    return f"relayed {cleaned}" if cleaned in HOST_SPANS else cleaned


def resource(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the cleaned resource attributes that identify the program; all others are left out."""
    return {key: brief(value) for key, value in pairs if key in PROGRAM and value}


def attribute_name(key: str) -> str:
    """Clean the name of an attribute; return an empty name if only the host may set it."""
    return _cached_attribute(key) if len(key) <= _MAX_CACHED_NAME else _attribute(key)


def _attribute(key: str) -> str:
    cleaned = brief(_RENAMED.get(key, key)).strip()
    return "" if cleaned in OF_THE_HOST or cleaned.startswith(OF_THE_HOST_PREFIXES) else cleaned


# Every span has the same dozen names, and searching them for secrets is a third of cleaning a span
# (`benchmarks/relay.py`).
_cached_attribute = lru_cache(2048, typed=True)(_attribute)


def attribute_text(attribute: str, value: str, given: Collection[str]) -> str:
    """Clean the text of an attribute; the ``given`` texts come from the host and stay as they are."""
    if value in given:
        return value
    return _content(attribute, value) if attribute in CONTENT else text(value)


def _content(attribute: str, value: str) -> str:
    cleaned = text(value, MAX_CONTENT)
    if cleaned == value or attribute not in MESSAGES:
        return cleaned
    # Redaction can break serialized JSON, so the texts inside are cleaned and serialized again.
    written = with_texts(value[:MAX_CONTENT], full, brief)
    return cleaned if written is None else single_line(written, MAX_CONTENT)


def text(value: str, limit: int = MAX_TEXT) -> str:
    """Return a text on one line, redacted and cut to ``limit`` characters."""
    return redacted_line(value, limit)
