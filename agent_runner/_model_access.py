"""Decide whether retries of a failed model request can succeed, and explain why not.

The CLI retries for 3 minutes, also if the host does not exist, the connection is refused or the key is refused. Only at
the end it reports why a request got no answer. So the runner tries to connect by itself.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .contract.classify import Failure
from .contract.credentials import API, BASE_URL, ELSEWHERE, REFUSED, key_refused

PATIENCE_SECONDS = 3.0
"""Seconds without a connection after which retries end; a gateway that restarts is back sooner."""

REFUSED_AT = 2
"""The attempt after which a refused key ends the retries; after the first the CLI renews an expired login."""

_LOOK_SECONDS = 3.0
_MAX_HOST = 100
_PORTS = {"http": 80, "https": 443}
_PROXIES = {"http": ("http_proxy", "HTTP_PROXY"), "https": ("https_proxy", "HTTPS_PROXY")}


class ModelVerdict(NamedTuple):
    """Why a model request is not retried: the failure, and a message for a person."""

    failure: Failure
    message: str


class _Peer(NamedTuple):
    """The host and port that the CLI connects to, and the variable that names them, if any."""

    host: str
    port: int
    variable: str | None


class ModelAccess:
    """Follows whether a run can reach the model.

    ``environ`` is the CLI's environment before it leads to a gateway.
    """

    def __init__(self, environ: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem: str | None = None
        """Why the last attempt to connect failed, and what to check; None if it succeeded."""
        self._environ = environ
        self._clock = clock
        self._since = 0.0

    def verdict(self, status: int | None, attempt: int) -> ModelVerdict | None:
        """Return why a retry cannot succeed, else None. ``status`` is None if there was no answer."""
        if status in REFUSED and attempt >= REFUSED_AT:
            return ModelVerdict(Failure("authentication", False), key_refused(status, "", self._environ))
        if status is None and self.problem is not None and self.is_hopeless:
            return ModelVerdict(Failure("network", False), self.problem)
        return None

    def final_verdict(self, status: int | None, cli_message: str) -> ModelVerdict | None:
        """Return a better explanation than the CLI's own for a request that it has given up, or None."""
        if status in REFUSED:
            return ModelVerdict(Failure("authentication", False), key_refused(status, cli_message, self._environ))
        # An answer with a status and this text is from our gateway, which did not reach the model.
        if self.problem is not None and (status is None or self.problem in cli_message):
            return ModelVerdict(Failure("network", False), self.problem)
        return None

    @property
    def is_hopeless(self) -> bool:
        """Return whether connecting has failed for so long that a retry cannot succeed."""
        return self.problem is not None and self._clock() - self._since >= PATIENCE_SECONDS

    def reached(self) -> None:
        """Note that the model's API has answered."""
        self.problem = None

    async def look(self) -> None:
        """Connect as the CLI does, and note a `problem` if that is impossible; a timeout is not one."""
        peer = _peer(self._environ)
        reason = await _why_unreachable(peer) if peer is not None else None
        if peer is None or reason is None:
            self.problem = None
            return
        if self.problem is None:
            self._since = self._clock()
        check = peer.variable or "this machine's network, and whether it needs HTTPS_PROXY"
        self.problem = f"the model cannot be reached: {reason}. Check {check}"


def _peer(environ: Mapping[str, str]) -> _Peer | None:
    """Return the host and port that the CLI connects to, or None if they are not known."""
    if any(environ.get(name) for name in ELSEWHERE):
        return None
    try:
        url = urlsplit(environ.get(BASE_URL) or API)
        port = url.port or _PORTS.get(url.scheme)
        proxy = _proxy(url.scheme, url.hostname or "", environ)
    except ValueError:  # the port is not a number
        return None
    if proxy is not None or not url.hostname or port is None:
        return proxy
    return _Peer(url.hostname, port, BASE_URL if environ.get(BASE_URL) else None)


def _proxy(scheme: str, host: str, environ: Mapping[str, str]) -> _Peer | None:
    """Return the proxy for requests to a host, or None."""
    variable = next((name for name in _PROXIES.get(scheme, ()) if environ.get(name)), None)
    if variable is None or _is_exempt(host, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    value = environ[variable]
    url = urlsplit(value if "://" in value else f"http://{value}")
    return _Peer(url.hostname or "", url.port or _PORTS.get(url.scheme, 80), variable)


def _is_exempt(host: str, exempt: str) -> bool:
    names = [name.strip().lstrip(".") for name in exempt.split(",")]
    return "*" in names or any(host == name or host.endswith(f".{name}") for name in names if name)


async def _why_unreachable(peer: _Peer) -> str | None:
    """Return why a connection cannot succeed, or None if it succeeds or times out."""
    host = peer.host[:_MAX_HOST]
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            addresses = await asyncio.get_running_loop().getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
            failures = [await _failure(family, address) for family, _, _, _, address in addresses]
    except (socket.gaierror, UnicodeError):  # UnicodeError: not a valid host name
        return f"there is no host {host}"
    except TimeoutError:
        return None
    was_refused = None not in failures and any(isinstance(each, ConnectionRefusedError) for each in failures)
    return f"{host} refuses connections on port {peer.port}" if was_refused else None


async def _failure(family: int, address: Any) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(attempt, address)
        except OSError as error:
            return error
    return None
