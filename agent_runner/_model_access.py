"""One run's way to the model: whether it is worth asking again, and what to say where it is not.

Where nobody listens, and where its key is refused, the CLI asks again for 3 minutes; only at the end it tells the first
from a slow network. So the runner looks for itself.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .contract.classify import Failure
from .contract.credentials import API, BASE_URL, REFUSED, key_refused

PATIENCE_SECONDS = 3.0
"""How long nothing may be reached before it is given up: a gateway of the user's own may be starting again."""

REFUSED_AT = 2
"""The attempt at which a refused key is given up: after the first one the CLI renews a login that has expired."""

_LOOK_SECONDS = 3.0
_MAX_HOST = 100
_ELSEWHERE = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
_PORTS = {"http": 80, "https": 443}
_PROXIES = {"http": ("http_proxy", "HTTP_PROXY"), "https": ("https_proxy", "HTTPS_PROXY")}


class ModelVerdict(NamedTuple):
    """Why the model is not asked again."""

    failure: Failure
    message: str


class _Peer(NamedTuple):
    """What the CLI connects to, and the variable that says so, if one does."""

    host: str
    port: int
    variable: str | None


class ModelAccess:
    """``environ`` is the CLI's, before a gateway takes the model's place in it."""

    def __init__(self, environ: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem: str | None = None
        """Why nothing was reached at the last look, and what to check."""
        self._environ = environ
        self._clock = clock
        self._since = 0.0

    def verdict(self, status: int | None, attempt: int) -> ModelVerdict | None:
        """Return why the CLI should not ask again; None where that may help. ``status`` is None without an answer."""
        if status in REFUSED and attempt >= REFUSED_AT:
            return ModelVerdict(Failure("authentication", False), key_refused(status, "", self._environ))
        if status is None and self.problem is not None and self.is_hopeless:
            return ModelVerdict(Failure("network", False), self.problem)
        return None

    def last_word(self, status: int | None, said: str) -> ModelVerdict | None:
        """Return what is wrong where the CLI has given up by itself, saying so; None where its words have to do."""
        if status in REFUSED:
            return ModelVerdict(Failure("authentication", False), key_refused(status, said, self._environ))
        # With a status it is our gateway that answered, and in these words.
        if self.problem is not None and (status is None or self.problem in said):
            return ModelVerdict(Failure("network", False), self.problem)
        return None

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing has been reached for so long that asking again cannot help."""
        return self.problem is not None and self._clock() - self._since >= PATIENCE_SECONDS

    def reached(self) -> None:
        """Note that the model has answered, whatever it said."""
        self.problem = None

    async def look(self) -> None:
        """Connect as the CLI does, and note what makes that impossible; a slow network does not."""
        peer = _peer(self._environ)
        why = await _why_unreachable(peer) if peer is not None else None
        if peer is None or why is None:
            self.problem = None
            return
        if self.problem is None:
            self._since = self._clock()
        check = peer.variable or "this machine's network, and whether it needs HTTPS_PROXY"
        self.problem = f"the model cannot be reached: {why}. Check {check}"


def _peer(environ: Mapping[str, str]) -> _Peer | None:
    """Return what the CLI connects to; None where that cannot be told."""
    if any(environ.get(name) for name in _ELSEWHERE):
        return None
    try:
        url = urlsplit(environ.get(BASE_URL) or API)
        port = url.port or _PORTS.get(url.scheme)
        proxy = _proxy(url.scheme, url.hostname or "", environ)
    except ValueError:  # a port that is no number
        return None
    if proxy is not None or not url.hostname or port is None:
        return proxy
    return _Peer(url.hostname, port, BASE_URL if environ.get(BASE_URL) else None)


def _proxy(scheme: str, host: str, environ: Mapping[str, str]) -> _Peer | None:
    """Return the proxy that requests to a host go through, if they do."""
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
    """Return why a connection is bound to fail; None where it succeeds, or may."""
    host = peer.host[:_MAX_HOST]
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
            failures = [await _failure(family, address) for family, _, _, _, address in found]
    except (socket.gaierror, UnicodeError):  # UnicodeError: no host can have this name
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
