"""Parse the ``name=value`` pairs of repeatable flags."""

from __future__ import annotations

from collections.abc import Iterable

from host_client.errors import ConfigurationError


def pairs(option: str, texts: Iterable[str] | None) -> dict[str, str]:
    """Return the pairs by name; raise `ConfigurationError` that names the option for another text."""
    parsed: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"{option} {text!r}: takes name=value")
        parsed[name] = value
    return parsed
