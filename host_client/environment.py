"""Variables of the host's environment that several of its parts read. Pure."""

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
"""Of the host's own environment only these go into a sandbox."""


def state_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return where this user's state belongs, as the XDG base directory specification has it; None for nobody's."""
    base, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "sandspan" / name
    return Path(home) / ".local" / "state" / "sandspan" / name if Path(home).is_absolute() else None
