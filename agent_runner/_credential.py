"""The model's key, and the decision whether the runner keeps it behind a gateway. No I/O but reading settings files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ._config import Config, ConfigError, config_directory
from .contract.credentials import API, BASE_URL, CREDENTIALS, ELSEWHERE, PLACEHOLDER

_BEARER = ("ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_CUSTOM = "ANTHROPIC_CUSTOM_HEADERS"
_MIN_SECRET = 8
"""Minimum characters of a header's value that is secret; a shorter one would also be found by chance."""

_MANAGED = Path("/etc/claude-code")
_DECIDED = {BASE_URL, *CREDENTIALS, *ELSEWHERE}
"""The variables that say where the CLI asks, and with which key."""


class ApiAddress(NamedTuple):
    """Host name and port of an API."""

    address: str
    port: int


class Credential(NamedTuple):
    """The model's key: the variable it is from, the headers that carry it, and the API's URL."""

    variable: str
    headers: dict[str, str]
    base_url: str

    @property
    def is_first_party(self) -> bool:
        """Return whether the API is Anthropic's own."""
        return urlsplit(self.base_url).hostname == urlsplit(API).hostname

    @property
    def server(self) -> ApiAddress:
        """Return the host name and port of the API."""
        try:
            url = urlsplit(self.base_url)
            return ApiAddress(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        except ValueError:  # no URL: each request will say so
            return ApiAddress("", 443)

    def is_in(self, value: bytes) -> bool:
        """Return whether a value contains the whole key, or a long value of another header."""
        secrets = (header.removeprefix("Bearer ").encode() for header in self.headers.values())
        return any(len(secret) >= _MIN_SECRET and secret in value for secret in secrets)


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


def uses_gateway(config: Config, environ: Mapping[str, str], report: Callable[[str], None]) -> bool:
    """Return whether the runner keeps the key.

    With ``auto`` it does if a variable holds the key, unless the CLI asks another provider, E2B's proxy adds the key,
    or settings that the CLI reads change one of these; ``report`` gets a message about such settings.
    """
    if config.gateway != "auto":
        return config.gateway == "on"
    name = _variable(environ)
    if name is None or environ[name] == PLACEHOLDER or any(environ.get(each) for each in ELSEWHERE):
        return False
    for place, settings in _settings(config, environ):
        if setting := _conflicting(settings):
            report(f"the gateway is off, as {place} sets {setting}: model requests are traced from the CLI's messages")
            return False
    return True


def _variable(environ: Mapping[str, str]) -> str | None:
    return next((name for name in CREDENTIALS if environ.get(name)), None)


def _settings(config: Config, environ: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Return the settings that the CLI reads, as JSON, each after the place where it is."""
    paths = _settings_files(config, environ)
    option = config.options.settings or ""
    if option.lstrip().startswith("{"):
        yield "the option settings", option.encode()
    elif option:
        paths.append(Path(config.cwd or ".", option))
    for path in paths:
        with contextlib.suppress(OSError):  # the CLI cannot read it either
            if path.is_file():  # a pipe would block
                yield str(path), path.read_bytes()


def _settings_files(config: Config, environ: Mapping[str, str]) -> list[Path]:
    """Return the paths of the settings that the CLI reads, whether they exist or not."""
    project = Path(config.cwd or ".", ".claude")
    files = {
        "user": config_directory(environ) / "settings.json",
        "project": project / "settings.json",
        "local": project / "settings.local.json",
    }
    managed = (_MANAGED / "managed-settings.json", *sorted(_MANAGED.glob("managed-settings.d/*.json")))
    return [*managed, *(files[source] for source in config.setting_sources)]


def _conflicting(content: bytes) -> str | None:
    """Return the first of some settings that says where the CLI asks or with which key, or None."""
    try:
        settings = json.loads(content)
        names = {"apiKeyHelper"} & settings.keys() or _DECIDED & (settings.get("env") or {}).keys()
    except (ValueError, AttributeError, RecursionError):
        return None  # the CLI cannot use it either
    return min(names, default=None)
