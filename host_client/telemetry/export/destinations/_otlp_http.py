"""OTLP over HTTP, as protobuf."""

from __future__ import annotations

import gzip
import os
import ssl
import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

from agent_runner.contract import __version__
from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import Compression, Endpoint

from . import Outcome, Retry, key_of
from ._answers import SLOWLY, of_http

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_MAX_ANSWER = 64 * 1024

# The fastest level: spans repeat themselves, and what another one saves is not worth its time.
_COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": lambda body: zlib.compress(body, 1),
}


def unchanged(request: bytes) -> bytes:
    """Return the request."""
    return request


class OtlpHttp:
    """Posts to one endpoint; ``transform`` makes of a request what this receiver takes.

    ``also`` is what tells its spans from those of another beside the endpoint, as an environment does.
    """

    durable = True

    def __init__(
        self, name: str, endpoint: Endpoint, transform: Callable[[bytes], bytes] = unchanged, also: str = ""
    ) -> None:
        self.name = name
        self.key = key_of(name, endpoint, also)
        self._endpoint = endpoint
        self._transform = transform
        self._connection: _Connection | None = None

    def send(self, request: bytes) -> Outcome:
        """Post a request; redirects are not followed, so that nobody else is told the key."""
        from urllib3 import exceptions  # not before there is something to send

        body = _COMPRESS[self._endpoint.compression](self._transform(request))
        try:
            if self._connection is None:
                self._connection = _Connection(self._endpoint)
            return self._connection.post(body)
        except exceptions.NewConnectionError as error:
            return Retry(None, _told(error))
        except exceptions.TimeoutError:
            return Retry(None, f"no answer within {self._endpoint.timeout:g} s")
        except (OSError, ValueError) as error:  # a file of the endpoint's, or an address that is none
            return Retry(SLOWLY, _told(error), True)
        except exceptions.HTTPError as error:
            return Retry(None, _told(error))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class _Connection:
    """One that is kept, to one endpoint, through the environment's proxy where it names one."""

    def __init__(self, endpoint: Endpoint) -> None:
        from urllib3 import PoolManager, ProxyManager  # as above
        from urllib3.util import parse_url

        url = parse_url(endpoint.url)
        self._timeout = endpoint.timeout
        self._headers = {
            "user-agent": f"sandspan/{__version__}",
            **endpoint.headers,
            "content-type": "application/x-protobuf",
            "accept-encoding": "identity",
        }
        if endpoint.compression != "none":
            self._headers["content-encoding"] = endpoint.compression
        context = _context(endpoint) if url.scheme == "https" else None
        proxy = _proxy_to(url.scheme or "", (url.host or "").strip("[]"), url.netloc or "")
        self._manager = (
            ProxyManager(proxy, proxy_headers=_authorization(proxy), timeout=self._timeout, ssl_context=context)
            if proxy
            else PoolManager(timeout=self._timeout, ssl_context=context)
        )
        if proxy:
            self._post, self._target = self._manager.urlopen, endpoint.url
        else:  # the pool itself: to look for it takes a quarter of a request
            self._post, self._target = self._manager.connection_from_url(endpoint.url).urlopen, url.request_uri

    def post(self, body: bytes) -> Outcome:
        """Return what became of a request; raise what urllib3 does."""
        deadline = time.monotonic() + self._timeout
        response = self._post(
            "POST",
            self._target,
            body=body,
            headers=self._headers,
            redirect=False,
            retries=False,
            preload_content=False,
        )
        answer = _read(response, deadline)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return of_http(response.status, headers, answer, time.time())

    def close(self) -> None:
        """Let go of it."""
        self._manager.clear()


def _read(response: BaseHTTPResponse, deadline: float) -> bytes:
    """Return an answer, of a long or slow one the beginning; the connection is kept where it was read whole."""
    from urllib3.exceptions import DecodeError  # as above

    if response.status < 200:  # another answer follows, which is not the next request's
        response.close()
        return b""
    answer = b""
    try:
        while piece := response.read1(_MAX_ANSWER):
            answer += piece
            if len(answer) >= _MAX_ANSWER or time.monotonic() > deadline:
                response.close()
                break
    except DecodeError:  # not what its content-encoding says: the status decides alone
        answer = b""
        response.close()
    response.release_conn()
    return answer[:_MAX_ANSWER]


def _proxy_to(scheme: str, *names: str) -> str | None:
    """Return the address of the environment's proxy for a host of these names; None for straight."""
    known = {} if any(map(proxy_bypass, names)) else getproxies()
    proxy = known.get(scheme) or known.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _authorization(proxy: str) -> dict[str, str] | None:
    from urllib3.util import make_headers, parse_url  # as above

    user, _, password = (parse_url(proxy).auth or "").partition(":")
    return make_headers(proxy_basic_auth=f"{unquote(user)}:{unquote(password)}") if user else None


def _told(error: BaseException) -> str:
    """Return what went wrong: at the bottom of it, where the library wraps what the system said."""
    said, below = error, error.__cause__ or error.__context__
    while below is not None:
        said = below if isinstance(below, OSError) else said
        below = below.__cause__ or below.__context__
    return brief(f"{type(said).__name__}: {said}")


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    if endpoint.certificate is None and endpoint.client_certificate is None:
        return _system(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    context = ssl.create_default_context(cafile=endpoint.certificate)
    if endpoint.client_certificate is not None:
        context.load_cert_chain(endpoint.client_certificate, endpoint.client_key)
    return context


@lru_cache(4)
def _system(file: str | None, directory: str | None) -> ssl.SSLContext:
    """Return what the system trusts: to read it takes 20 ms, and every receiver needs it."""
    import certifi  # as above

    return ssl.create_default_context(cafile=file or (None if directory else certifi.where()), capath=directory)
