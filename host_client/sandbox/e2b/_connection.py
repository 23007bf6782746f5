"""Which E2B to talk to, and as whom, from an environment. Pure."""

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
    """Return the SDK's connection parameters; what is absent the SDK takes from the process's environment."""
    return cast("ApiParams", {name: environ[key] for key, name in _PARAMETERS.items() if environ.get(key)})
