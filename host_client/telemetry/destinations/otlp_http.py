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

from agent_runner import __version__
from agent_runner.sanitize import brief
from host_client.telemetry.endpoints import Compression, Endpoint

from . import Outcome, Retry, key_of
from .answers import SLOWLY, of_http

if TYPE_CHECKING:
    import httpx

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


@lru_cache(4)
def _system(_file: str | None, _directory: str | None) -> ssl.SSLContext:
    """Return what the system trusts: to read it takes 20 ms, and every receiver needs it."""
    import httpx  # as below

    return httpx.create_ssl_context()


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
        self._client: httpx.Client | None = None

    def send(self, request: bytes) -> Outcome:
        """Post a request; redirects are not followed, so that nobody else is told the key."""
        import httpx  # not before there is something to send

        body = _COMPRESS[self._endpoint.compression](self._transform(request))
        try:
            return self._post(body)
        except httpx.TimeoutException:
            return Retry(None, f"no answer within {self._endpoint.timeout:g} s")
        except httpx.RequestError as error:
            return Retry(None, brief(f"{type(error).__name__}: {error}"))
        except (httpx.InvalidURL, OSError) as error:  # a file of the endpoint's, too
            return Retry(SLOWLY, brief(f"{type(error).__name__}: {error}"), True)

    def _post(self, body: bytes) -> Outcome:
        import httpx  # as above

        client = self._connected()
        deadline = time.monotonic() + self._endpoint.timeout
        with client.stream("POST", self._endpoint.url, content=body) as response:
            answer = b""
            try:
                for chunk in response.iter_bytes():
                    answer += chunk[:_MAX_ANSWER]
                    if len(answer) >= _MAX_ANSWER or time.monotonic() > deadline:
                        break
            except httpx.DecodingError:
                answer = b""  # not what its content-encoding says: the status decides alone
            headers = {name.lower(): value for name, value in response.headers.items()}
            return of_http(response.status_code, headers, answer, time.time())

    def _connected(self) -> httpx.Client:
        if self._client is None:
            import httpx  # as above

            headers = {
                "user-agent": f"sandspan/{__version__}",
                **self._endpoint.headers,
                "content-type": "application/x-protobuf",
                "accept-encoding": "identity",
            }
            if self._endpoint.compression != "none":
                headers["content-encoding"] = self._endpoint.compression
            self._client = httpx.Client(headers=headers, timeout=self._endpoint.timeout, verify=self._verify())
        return self._client

    def _verify(self) -> ssl.SSLContext:
        endpoint = self._endpoint
        if not endpoint.url.startswith("https:"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is not used
        if endpoint.certificate is None and endpoint.client_certificate is None:
            return _system(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        context = ssl.create_default_context(cafile=endpoint.certificate)
        if endpoint.client_certificate is not None:
            context.load_cert_chain(endpoint.client_certificate, endpoint.client_key)
        return context

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
