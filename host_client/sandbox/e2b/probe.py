"""What a doctor asks E2B: each question once and with little patience."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from e2b import AsyncSandbox, AsyncTemplate, ConnectionConfig

from ._connection import api_params
from ._failures import Translated

if TYPE_CHECKING:
    from e2b import ApiParams

TIMEOUT = 10.0
"""Seconds for an answer."""


def api_url(environ: Mapping[str, str]) -> str:
    """Return where E2B's API is, as the SDK makes it of the environment."""
    return ConnectionConfig(**api_params(environ)).api_url


async def ask_for_sandboxes(environ: Mapping[str, str]) -> None:
    """Ask for one sandbox of the key's team; raise a `SandboxError` if E2B does not answer, or refuses the key."""
    with Translated():
        await AsyncSandbox.list(limit=1, **_once(environ)).next_items()


async def template_exists(name: str, environ: Mapping[str, str]) -> bool:
    """Ask for a template of this name or ``name:tag``; raise a `SandboxError` if E2B does not say."""
    with Translated():
        return await AsyncTemplate.exists(name.partition(":")[0], **_once(environ))


def _once(environ: Mapping[str, str]) -> ApiParams:
    return {**api_params(environ), "request_timeout": TIMEOUT, "retries": 0}
