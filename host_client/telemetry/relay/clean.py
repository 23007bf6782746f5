"""What of a sandbox's words may stand in a span: bounded, in one line, without secrets, and nobody's identity. Pure.

The runner cleans what it sends. This holds for whatever else writes to its stdout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agent_runner.contract.genai import CONTENT, MESSAGES, message, read_message
from agent_runner.contract.memory import Remembered
from agent_runner.contract.sanitize import brief, full, redact, single_line
from agent_runner.contract.spans import Value

MAX_ATTRIBUTES = 128
MAX_EVENTS = 128
"""Most of each on a span, and of attributes on an event: OpenTelemetry's own default limits."""

MAX_ITEMS = 128
MAX_TEXT = 1024
MAX_CONTENT = 256 * 1024
"""Most characters of a prompt, an answer or a tool's arguments: the JSON of as much text as a runner lets through."""

OWNED = frozenset({"user.id", "tenant.id", "session.id", "user.tier"})
"""Attributes that only the host sets: what is billed and shown to whom goes by them."""

_OURS = ("langfuse.", "gen_ai.usage.cost", "ai.telemetry.metadata.", "tag.tags")
"""Beginnings of names that a backend takes for whom and how much, and no runner sends."""

_HOSTS = frozenset({"agent.session", "sandbox.create", "sandbox.cleanup"})
"""Names of spans that only the host makes: a backend shows a whole run by the first."""

_OF_RESOURCE = frozenset(
    {"service.name", "service.version", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"}
)
_BEYOND = 8192
"""A secret that begins before the cut must be seen whole to be recognised."""

name = Remembered(brief)
"""Return the name of an event or a scope, or a status message: at most 200 characters."""


@Remembered
def span_name(text: str) -> str:
    """Return the name of a span; one that says it were the host's is told apart."""
    cleaned = name(text)
    return f"relayed {cleaned}" if cleaned in _HOSTS else cleaned


def attributes(pairs: Iterable[tuple[str, Value]], given: Collection[str] = ()) -> dict[str, Value]:
    """Return what of attributes may stand on a span or an event; ``given`` texts are the host's own, and stay."""
    kept: dict[str, Value] = {}
    for key, value in pairs:
        cleaned = attribute(key)
        if not cleaned:
            continue
        kept[cleaned] = _value(cleaned, value, given)
        if len(kept) == MAX_ATTRIBUTES:
            break
    return kept


def resource(pairs: Iterable[tuple[str, Value]]) -> tuple[tuple[str, str], ...]:
    """Return what of a resource may stand there: which program made the spans."""
    return tuple((key, name(value)) for key, value in pairs if key in _OF_RESOURCE and isinstance(value, str))


def _value(of: str, value: Value, given: Collection[str]) -> Value:
    if isinstance(value, str):
        return said(of, value, given)
    if isinstance(value, tuple):
        return tuple(text(str(item)) for item in value[:MAX_ITEMS])  # all strings: no backend takes a mixture
    return value


@Remembered
def attribute(key: str) -> str:
    """Return the name of an attribute; an empty one for what is the host's to say."""
    cleaned = brief(key).strip()
    return "" if cleaned in OWNED or cleaned.startswith(_OURS) else cleaned


def said(of: str, value: str, given: Collection[str]) -> str:
    """Return the text of an attribute of this name; ``given`` ones are the host's own, and stay."""
    if value in given:
        return value
    return _content(of, value) if of in CONTENT else text(value)


def _content(of: str, value: str) -> str:
    cleaned = text(value, MAX_CONTENT)
    if cleaned == value or of not in MESSAGES or (read := read_message(value)) is None:
        return cleaned
    # What is taken out of JSON by an expression may leave none.
    role, said = read
    return single_line(message(name(role), full(said)), MAX_CONTENT)


def text(value: str, limit: int = MAX_TEXT) -> str:
    """Return a text in one line, redacted and cut."""
    return single_line(redact(value[: limit + _BEYOND]), limit)
