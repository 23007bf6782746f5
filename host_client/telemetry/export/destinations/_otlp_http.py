"""Send OTLP over HTTP, as protobuf. Importing this module imports httpx, which takes 0.1 s."""

from __future__ import annotations

import gzip
import os
import ssl
import time
import zlib
from collections.abc import Callable
from functools import lru_cache

import httpx

from agent_runner.contract import __version__
from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import Compression, Endpoint

from . import Outcome, Retry, key_of
from ._answers import SLOWLY, of_http

_MAX_ANSWER = 64 * 1024
"""Maximum number of bytes of an answer that are read."""

# Level 1 is the fastest; spans repeat themselves, so higher levels save few bytes for their time.
_COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": lambda body: zlib.compress(body, 1),
}


class OtlpHttp:
    """Send OTLP requests to one endpoint over HTTP, through a proxy if the environment names one.

    ``transform`` adapts a request to the receiver. ``also`` becomes part of the destination's key, if two destinations
    have the same endpoint.
    """

    durable = True

    def __init__(
        self, name: str, endpoint: Endpoint, transform: Callable[[bytes], bytes] = bytes, also: str = ""
    ) -> None:
        self.name = name
        self.key = key_of(name, endpoint, also)
        self._endpoint = endpoint
        self._transform = transform
        self._client: httpx.Client | None = None

    def send(self, request: bytes) -> Outcome:
        """Send a request once. Redirects are not followed, so that no other server gets the key."""
        body = _COMPRESS[self._endpoint.compression](self._transform(request))
        try:
            if self._client is None:
                self._client = _client(self._endpoint)
            return self._post(self._client, body)
        except httpx.TimeoutException:
            return Retry(None, f"no answer within {self._endpoint.timeout:g} s")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:  # address, header
            return _misconfigured(error)
        except httpx.HTTPError as error:
            return Retry(None, _cause(error))
        except (OSError, ValueError) as error:  # a certificate's file, the environment's proxy
            return _misconfigured(error)

    def _post(self, client: httpx.Client, body: bytes) -> Outcome:
        deadline = time.monotonic() + self._endpoint.timeout
        with client.stream("POST", self._endpoint.url, content=body) as response:
            answer = _read(response, deadline)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return of_http(response.status_code, headers, answer, time.time(), self._clean)

    def _clean(self, text: str) -> str:
        return brief(self._endpoint.redact(text))

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()


def _client(endpoint: Endpoint) -> httpx.Client:
    headers = {
        "user-agent": f"sandspan/{__version__}",
        **endpoint.headers,
        "content-type": "application/x-protobuf",
        "accept-encoding": "identity",
    }
    if endpoint.compression != "none":
        headers["content-encoding"] = endpoint.compression
    context = _context(endpoint)
    limits = httpx.Limits(keepalive_expiry=None)  # httpx's 5 s end as the next request comes
    try:
        return httpx.Client(headers=headers, timeout=endpoint.timeout, verify=context, limits=limits)
    except (httpx.InvalidURL, ImportError) as error:
        raise ValueError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from None


def _read(response: httpx.Response, deadline: float) -> bytes:
    """Return the body of an answer, or the beginning of a long or slow one."""
    answer = b""
    try:
        for piece in response.iter_bytes():
            answer += piece
            if len(answer) >= _MAX_ANSWER or time.monotonic() > deadline:
                break
    except httpx.DecodingError:  # the body is not in its content-encoding, so the status alone decides
        return b""
    return answer[:_MAX_ANSWER]


def _context(endpoint: Endpoint) -> ssl.SSLContext | bool:
    if endpoint.url.lower().startswith("http:"):
        return False  # without TLS there is nothing to verify
    if endpoint.certificate is None and endpoint.client_certificate is None:
        return _default_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    context = ssl.create_default_context(cafile=endpoint.certificate)
    if endpoint.client_certificate is not None:
        context.load_cert_chain(endpoint.client_certificate, endpoint.client_key)
    return context


@lru_cache(4)  # reading the certificate authorities takes 20 ms
def _default_context(_file: str | None, _directory: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reads the same variables, else certifi's authorities


def _misconfigured(error: BaseException) -> Retry:
    return Retry(SLOWLY, _cause(error), True)


def _cause(error: BaseException) -> str:
    """Return the text of the deepest OSError in a chain of exceptions, or else of the error itself."""
    cause, below = error, error.__cause__ or error.__context__
    while below is not None:
        cause = below if isinstance(below, OSError) else cause
        below = below.__cause__ or below.__context__
    return brief(f"{type(cause).__name__}: {cause}")
