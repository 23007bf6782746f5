"""Requests to E2B for ``host_client doctor``, each without retries and with a short timeout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from e2b import AsyncSandbox, AsyncTemplate, ConnectionConfig

from ._connection import api_params
from ._failures import Translated

if TYPE_CHECKING:
    from e2b import ApiParams

TIMEOUT = 10.0
"""Seconds to wait for an answer."""


def api_url(environ: Mapping[str, str]) -> str:
    """Return the URL of E2B's API that the SDK derives from the environment."""
    return ConnectionConfig(**api_params(environ)).api_url


async def ask_for_sandboxes(environ: Mapping[str, str]) -> None:
    """List one sandbox, to check address and key; raise a `SandboxError` if E2B does not answer or refuses the key."""
    with Translated():
        await AsyncSandbox.list(limit=1, **_once(environ)).next_items()


async def template_exists(name: str, environ: Mapping[str, str]) -> bool:
    """Return whether E2B has a template of this ``name`` or ``name:tag``; raise a `SandboxError` if E2B fails."""
    with Translated():
        return await AsyncTemplate.exists(name.partition(":")[0], **_once(environ))


def _once(environ: Mapping[str, str]) -> ApiParams:
    return {**api_params(environ), "request_timeout": TIMEOUT, "retries": 0}
