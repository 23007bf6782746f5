"""The model's key, and the decision whether the runner keeps it behind a gateway. No I/O but reading settings files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ._config import Config, ConfigError, config_directory
from .contract.credentials import API, BASE_URL, CREDENTIALS, ELSEWHERE, PLACEHOLDER

_BEARER = ("ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_CUSTOM = "ANTHROPIC_CUSTOM_HEADERS"
_MANAGED_SETTINGS = Path("/etc/claude-code/managed-settings.json")


class Credential(NamedTuple):
    """The model's key: the variable it is from, the headers that carry it, and the API's URL."""

    variable: str
    headers: dict[str, str]
    base_url: str

    @property
    def is_first_party(self) -> bool:
        """Return whether the API is Anthropic's own."""
        return urlsplit(self.base_url).hostname == urlsplit(API).hostname

    def stands_in(self, value: bytes) -> bool:
        """Return whether a value contains the whole key."""
        return any(header.removeprefix("Bearer ").encode() in value for header in self.headers.values())


def credential(environ: Mapping[str, str]) -> Credential:
    """Return the key that the CLI would use; raise `ConfigError` if there is none."""
    name = _variable(environ)
    if name is None:
        raise ConfigError(f"AGENT_GATEWAY=on: no key to keep, set {', '.join(CREDENTIALS[:-1])} or {CREDENTIALS[-1]}")
    lines = environ.get(_CUSTOM, "").split("\n")
    headers = {
        header.strip(): value.strip() for header, colon, value in (line.partition(":") for line in lines) if colon
    }
    if name in _BEARER:
        headers["authorization"] = f"Bearer {environ[name]}"
    else:
        headers["x-api-key"] = environ[name]
    return Credential(name, headers, environ.get(BASE_URL) or API)


def forget_credentials(environ: MutableMapping[str, str]) -> None:
    """Remove the model's keys from an environment, so that no child process gets them."""
    for name in (*CREDENTIALS, _CUSTOM):
        environ.pop(name, None)


def uses_gateway(config: Config, environ: Mapping[str, str]) -> bool:
    """Return whether the runner keeps the key.

    With ``auto`` it does if a variable holds the key, unless the CLI asks another provider, takes a key from its
    settings, or E2B's proxy adds the key.
    """
    if config.gateway != "auto":
        return config.gateway == "on"
    name = _variable(environ)
    if name is None or environ[name] == PLACEHOLDER or any(environ.get(each) for each in ELSEWHERE):
        return False
    words = [word.encode() for word in ("apiKeyHelper", *CREDENTIALS, *ELSEWHERE)]
    return not any(word in settings for settings in _settings(config, environ) for word in words)


def _variable(environ: Mapping[str, str]) -> str | None:
    return next((name for name in CREDENTIALS if environ.get(name)), None)


def _settings(config: Config, environ: Mapping[str, str]) -> Iterator[bytes]:
    """Return the texts of the settings files that the CLI reads."""
    project = Path(config.cwd or ".", ".claude")
    files = {
        "user": config_directory(environ) / "settings.json",
        "project": project / "settings.json",
        "local": project / "settings.local.json",
    }
    for path in (_MANAGED_SETTINGS, *(files[source] for source in config.setting_sources)):
        if path.is_file():  # not a pipe, which would block
            try:
                yield path.read_bytes()
            except OSError:
                continue  # the CLI cannot read it either
