"""The model's key: the variables it may be in, and what to say when the model's API refuses it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

API = "https://api.anthropic.com"
BASE_URL = "ANTHROPIC_BASE_URL"

CREDENTIALS = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
"""The variables that the key may be in; the CLI takes the first of them that is set."""

PLACEHOLDER = "added-by-e2b-on-the-way-out"
"""The value of a key that never enters its sandbox: E2B's proxy puts the real one in its place."""

REFUSED = (401, 403)
"""The HTTP statuses with which the model's API refuses a key."""

KEY_REFUSED = "the model's API refused the key"
"""How the message begins that `key_refused` makes."""

_MAX_SAID = 500
_PROSE = re.compile(r"API Error: \d{3} (.+)", re.DOTALL)
"""The CLI's message about an API error."""


def key_refused(status: int, said: str, environ: Mapping[str, str]) -> str:
    """Say that the model's API refused the key, where the key is from, and what to check.

    ``said`` is the CLI's message, if it has one. ``environ`` is the CLI's, before a gateway takes the key out of it.
    """
    found = _PROSE.search(said[:2000])
    answer = f"HTTP {status}: {found[1].strip()[:_MAX_SAID]}" if found else f"HTTP {status}"
    return f"{KEY_REFUSED} ({answer}). {key_advice(environ)}"


def key_advice(environ: Mapping[str, str]) -> str:
    """Say where a key that was refused is from, and what to check."""
    given = [name for name in CREDENTIALS if environ.get(name)]
    if not given:
        return "It is that of a login in CLAUDE_CONFIG_DIR: log in again, or set ANTHROPIC_API_KEY"
    if environ[given[0]] == PLACEHOLDER:
        return "E2B's proxy adds it: check the key that the secret in E2B holds (--secret-name)"
    before = f", which goes before {' and '.join(given[1:])}" if given[1:] else ""
    url = environ.get(BASE_URL)
    where = f"{without_secrets(url)} ({BASE_URL})" if url else API
    return f"It is from {given[0]}{before}: check that it is complete, not revoked, and a key for {where}"


def without_secrets(url: str) -> str:
    """Return a URL's scheme, host and port, without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
