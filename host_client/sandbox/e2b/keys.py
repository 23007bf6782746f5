"""The ways to keep the model's key while an agent runs in E2B. Pure.

- ``gateway``: the runner, as root, keeps the key and adds it to the CLI's requests; the agent sees only a token.
- ``e2b-secrets``: E2B's egress proxy adds the key to requests that leave the sandbox; it never enters the sandbox.
- ``env``: the key is in the agent's environment, as with Claude Code anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from agent_runner.contract.credentials import CREDENTIALS, PLACEHOLDER
from host_client.errors import ConfigurationError

KeyMode = Literal["gateway", "e2b-secrets", "env"]
KEY_MODES: tuple[str, ...] = get_args(KeyMode)

_ALL_TRAFFIC = "0.0.0.0/0"

ENV_WARNING = "keys: the model's key is in the agent's environment, where the agent can read it (--keys env)"


def key_environment(mode: KeyMode, environ: Mapping[str, str]) -> dict[str, str]:
    """Return a runner's environment in which the model's credential is kept as ``mode`` says."""
    if mode == "gateway":
        if not any(environ.get(name) for name in CREDENTIALS):
            raise ConfigurationError("no key for the model: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN")
        return {**environ, "AGENT_GATEWAY": "on"}
    if mode == "e2b-secrets":
        kept = {name: value for name, value in environ.items() if name not in CREDENTIALS}
        return {**kept, "ANTHROPIC_API_KEY": PLACEHOLDER, "AGENT_GATEWAY": "off"}
    return {**environ, "AGENT_GATEWAY": "off"}  # a gateway would take the key out of the agent's environment


def model_host(environ: Mapping[str, str]) -> str:
    """Return the host name that model requests go to."""
    url = environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com"
    host = urlsplit(url).hostname
    if host is None:
        raise ConfigurationError(f"ANTHROPIC_BASE_URL={url!r}: takes a URL such as https://api.anthropic.com")
    return host


def network_options(allow_out: tuple[str, ...], secret: str | None, host: str) -> dict[str, Any] | None:
    """Return E2B's network options: a list of allowed destinations, and the header that E2B's proxy adds.

    ``secret`` is the name of an E2B secret that holds an API key. Without ``allow_out`` all traffic is allowed; with
    it, the model's ``host`` is allowed too. Return None if nothing is restricted or added.
    Raise `ConfigurationError` for a secret if ``host`` is an address.
    """
    options: dict[str, Any] = {}
    if allow_out:
        # E2B refuses a list of allowed domains without a denial of all other traffic.
        options = {"allow_out": list(dict.fromkeys((*allow_out, host))), "deny_out": [_ALL_TRAFFIC]}
    if secret is not None:
        if _is_address(host):
            raise ConfigurationError(
                f"--keys e2b-secrets: E2B's proxy adds a key by domain name, and ANTHROPIC_BASE_URL has the address"
                f" {host}: give it a name, or use --keys gateway"
            )
        # The placeholder that e2b.Secret.fill() makes. A rule needs no allow_out if nothing is denied.
        options["rules"] = {host: [{"transform": {"headers": {"x-api-key": f"${{e2b.secrets.{secret}}}"}}}]}
    return options or None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
