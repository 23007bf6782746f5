"""Names of the host's environment variables for the model, and the directory for a user's state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MODEL_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_MAX_RETRIES",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "API_TIMEOUT_MS",
)
"""Variables of the host's environment that are passed into a sandbox for the model."""


def state_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the path of a file among this user's state, by the XDG specification; None without a home directory."""
    base, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "sandspan" / name
    return Path(home) / ".local" / "state" / "sandspan" / name if Path(home).is_absolute() else None
