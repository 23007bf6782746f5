"""The variables that hold the model's key, and the advice for a key that the model's API refuses. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

API = "https://api.anthropic.com"
BASE_URL = "ANTHROPIC_BASE_URL"

CREDENTIALS = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
"""The variables that may hold the model's key; the CLI uses the first that is set."""

ELSEWHERE = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
"""The variables with which the CLI asks another provider than Anthropic's API."""

PLACEHOLDER = "added-by-e2b-on-the-way-out"
"""Stands for a key that never enters the sandbox; E2B's proxy replaces it with the real key."""

REFUSED = (401, 403)
"""HTTP statuses with which the model's API refuses a key."""

KEY_REFUSED = "the model's API refused the key"
"""Beginning of the messages that `key_refused` returns."""

_MAX_ANSWER = 500
_API_ERROR = re.compile(r"API Error: \d{3} (.+)", re.DOTALL)
"""The CLI's message about an API error, with the API's answer."""


def key_refused(status: int, cli_message: str, environ: Mapping[str, str]) -> str:
    """Return a message that the model's API refused the key, with the variable it is from and what to check.

    ``cli_message`` may be empty. ``environ`` is the CLI's environment before a gateway removes the key from it.
    """
    match = _API_ERROR.search(cli_message[:2000])
    answer = f"HTTP {status}: {match[1].strip()[:_MAX_ANSWER]}" if match else f"HTTP {status}"
    return f"{KEY_REFUSED} ({answer}). {key_advice(environ)}"


def key_advice(environ: Mapping[str, str]) -> str:
    """Return a sentence that names the variable a refused key is from and says what to check."""
    given = [name for name in CREDENTIALS if environ.get(name)]
    if not given:
        return "It belongs to a login in CLAUDE_CONFIG_DIR: log in again, or set ANTHROPIC_API_KEY"
    if environ[given[0]] == PLACEHOLDER:
        return "E2B's proxy adds it: check the key in the E2B secret (--secret-name)"
    before = f", which takes precedence over {' and '.join(given[1:])}" if given[1:] else ""
    url = environ.get(BASE_URL)
    where = f"{without_secrets(url)} ({BASE_URL})" if url else API
    return f"It is from {given[0]}{before}: check that it is complete, not revoked, and a key for {where}"


def without_secrets(url: str) -> str:
    """Return a URL's scheme, host and port, without user, password, path and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
