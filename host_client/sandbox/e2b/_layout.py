"""Paths and account of Sandspan's template (template/e2b.Dockerfile)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The paths and the account that the host expects in a sandbox's image."""

    python: str = "/opt/sandspan/bin/python"
    state: str = "/var/lib/sandspan"
    """The runner's own directory, which the agent cannot read."""
    user: str = "user"
    """The account of the agent and its tools."""
    work: str = "/home/user/work"
