"""Choose the service's store by a path or URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from host_client.environment import state_path
from host_client.errors import ConfigurationError

from ._redis import RedisStore
from ._sqlite import SqliteStore
from .base import LEASE_SECONDS, Store, TokenStore

MAX_LEASE = 600.0
"""Maximum of a lease in seconds; for so long the sessions of a dead replica stand still."""

_TAKES = "--store takes a path, sqlite:///path, redis://…, rediss://… or unix://…"


def open_store(url: str | None, environ: Mapping[str, str] = os.environ) -> Store:
    """Return the store at a path or URL (None: the user's own file), not yet open; raise `ConfigurationError`."""
    return _store(url, environ, alone=True)


def open_tokens(url: str | None, environ: Mapping[str, str] = os.environ) -> TokenStore:
    """Return a store for its tokens alone, which works while a service has the store open; see `open_store`."""
    return _store(url, environ, alone=False)


def is_to_be_made(url: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file that opening the store would create; None if it exists or the store is no file."""
    place = _place(url, environ)
    try:
        return place if isinstance(place, Path) and not place.exists() else None
    except OSError:  # opening it will raise the reason
        return None


def _store(url: str | None, environ: Mapping[str, str], *, alone: bool) -> SqliteStore | RedisStore:
    place = _place(url, environ)
    if isinstance(place, Path):
        return SqliteStore(place, alone=alone)
    address, lease_seconds = _leased(place)
    return RedisStore(address, lease_seconds=lease_seconds)


def _place(url: str | None, environ: Mapping[str, str]) -> Path | str:
    """Return the file of a SQLite store, or the URL of a Redis."""
    if not url:
        return _default(environ)
    scheme, is_url, _ = url.partition("://")
    match scheme if is_url else "":
        case "":
            return Path(url)
        case "sqlite":
            return _path(url)
        case "redis" | "rediss" | "unix":
            return url
        case _:  # the rest of the URL may contain a password
            raise ConfigurationError(f"{_TAKES}, not {scheme[:20]}://…")


def _leased(url: str) -> tuple[str, float]:
    """Split the option ``lease`` from a Redis URL; return the rest, for redis-py, and the lease in seconds."""
    address, _, options = url.partition("?")
    query = parse_qsl(options, keep_blank_values=True)
    given = [value for name, value in query if name == "lease"]
    if not given:
        return url, LEASE_SECONDS
    try:
        seconds = float(given[-1])
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= MAX_LEASE:
        raise ConfigurationError(f"--store redis://…?lease= takes 1 to {MAX_LEASE:g} seconds")
    rest = urlencode([(name, value) for name, value in query if name != "lease"])
    return f"{address}?{rest}" if rest else address, seconds


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.strip("/"):
        raise ConfigurationError(f"{_TAKES}; the path of sqlite:///path is absolute")
    return Path("/" + unquote(parts.path).lstrip("/"))


def _default(environ: Mapping[str, str]) -> Path:
    path = state_path(environ, "service.sqlite")
    if path is None:
        raise ConfigurationError(f"no place for the sessions: set HOME or XDG_STATE_HOME, or use --store; {_TAKES}")
    return path
