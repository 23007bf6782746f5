"""Reads the E2B SDK's connection parameters, such as address and key, from the environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from e2b import ApiParams

_PARAMETERS = {
    "E2B_API_KEY": "api_key",
    "E2B_DOMAIN": "domain",
    "E2B_API_URL": "api_url",
    "E2B_SANDBOX_URL": "sandbox_url",
    "E2B_HTTP_VERSION": "http_version",
}


def api_params(environ: Mapping[str, str]) -> ApiParams:
    """Return the SDK's connection parameters; the SDK reads absent ones from the process's own environment."""
    return cast("ApiParams", {name: environ[key] for key, name in _PARAMETERS.items() if environ.get(key)})
