"""Apply the settings of spans: their common attributes, and the sanitizers of their texts."""

from __future__ import annotations

import importlib
from typing import Any

from ._config import Config, ConfigError
from .contract.sanitize import SANITIZERS, Content, Sanitizer, ToolSanitizer, single_line
from .contract.spans import Value

MAX_ATTRIBUTE = 1000
"""Maximum characters of the name and of the value of a configured span attribute."""


def common_attributes(config: Config) -> dict[str, Value]:
    """Return the configured attributes that every span of a run has."""
    ids = {"user.id": config.user_id, "session.id": config.session_id, "tenant.id": config.tenant_id}
    given = {**config.attributes, **{name: value for name, value in ids.items() if value}}
    return {single_line(name, MAX_ATTRIBUTE): single_line(value, MAX_ATTRIBUTE) for name, value in given.items()}


def sanitizer_of(config: Config, content: Content) -> Sanitizer | None:
    """Return the sanitizer of texts for spans, or None to leave them out; raise `ConfigError` if it is not found."""
    if config.sanitizer is None or content == "none":
        return SANITIZERS[content]
    given = imported("AGENT_SANITIZER", config.sanitizer)

    def sanitize(text: str) -> str:
        try:
            return str(given(text))
        except Exception as error:  # a custom function must not fail the run, and its text must not pass
            return f"[the sanitizer failed: {type(error).__name__}]"

    return sanitize


def tool_sanitizer_of(config: Config) -> ToolSanitizer | None:
    """Return the sanitizer of the texts of tool calls, or None to leave them out; raise `ConfigError` as above."""
    sanitize = sanitizer_of(config, config.tool_content)
    return ToolSanitizer(sanitize, config.tool_content == "full") if sanitize is not None else None


def imported(what: str, place: str) -> Any:
    """Return the object at ``module:attribute``; raise `ConfigError` with the setting's name if there is none."""
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name
        raise ConfigError(f"{what}={place!r}: takes module:attribute ({error})") from None
