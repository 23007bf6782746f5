"""Endpoints of exporters: complete the URLs that users write, and make them safe to print. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

Protocol = Literal["http/protobuf", "grpc"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
Compression = Literal["none", "gzip", "deflate"]
COMPRESSIONS: tuple[str, ...] = get_args(Compression)
Signal = Literal["traces", "metrics"]

GRPC_PORT = 4317
LANGFUSE_CLOUD = "https://cloud.langfuse.com"
LANGFUSE_PATH = "/api/public/otel"
LANGFUSE_INGESTION_VERSION = "4"
PHOENIX_LOCAL = "http://localhost:6006"
PHOENIX_PROJECT = "default"
SIGNOZ_LOCAL = "http://localhost:4318"
OTLP_LOCAL: dict[Protocol, str] = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}
SIGNOZ_CLOUD = ".signoz.cloud"

_MIN_SECRET = 8
"""Minimum length of a header's word that is looked for as a secret; shorter ones are versions and schemes."""

_NO_URL = "is not a URL: write http://host:port or https://host"
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, kw_only=True, repr=False)
class Endpoint:
    """The address of one OTLP receiver for one signal.

    ``url`` is complete, with the signal's path (except for gRPC), and holds no user or password. ``timeout`` is the
    seconds that one request may take. ``certificate`` is the PEM file of the CA; the other two files are those of a
    client's certificate and key.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    protocol: Protocol = "http/protobuf"
    timeout: float = 10.0
    compression: Compression = "gzip"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({shown(self.url)}, {self.protocol})"

    def redact(self, text: str) -> str:
        """Return a text with ``[redacted]`` in place of the credentials in the headers, which an answer may repeat."""
        for secret in _secrets(self.headers):
            if len(secret) >= _MIN_SECRET:
                text = text.replace(secret, "[redacted]")
        return text


def langfuse(url: str, public_key: str, secret_key: str) -> Endpoint:
    """Return Langfuse's endpoint for spans from its base URL, with or without a part of the path; raise ValueError."""
    parts, headers = _split(url)
    path = parts.path.removesuffix("/v1/traces").rstrip("/").removesuffix(LANGFUSE_PATH)
    token = base64.b64encode(f"{public_key}:{secret_key}".encode()).decode()
    return Endpoint(
        url=urlunsplit(parts._replace(path=f"{path}{LANGFUSE_PATH}/v1/traces", query="")),
        headers={
            **headers,
            "authorization": f"Basic {token}",
            "x-langfuse-ingestion-version": LANGFUSE_INGESTION_VERSION,
        },
    )


def phoenix(url: str, api_key: str = "") -> Endpoint:
    """Return Phoenix's endpoint for spans over HTTP; raise ValueError, also for the port of its gRPC server."""
    parts, headers = _split(url)
    if _usual_protocol(parts) == "grpc":
        raise ValueError(f"has Phoenix's gRPC port {GRPC_PORT}: write the port of its page, such as {PHOENIX_LOCAL}")
    if api_key:
        headers["authorization"] = f"Bearer {header_value(api_key)}"
    return _endpoint(parts, headers, "traces", "http/protobuf")


def signoz(url: str, ingestion_key: str = "", signal: Signal = "traces", protocol: Protocol | None = None) -> Endpoint:
    """Return SigNoz's endpoint: gRPC if named or on port 4317; raise ValueError, also for its cloud without a key."""
    parts, headers = _split(url)
    if (parts.hostname or "").endswith(SIGNOZ_CLOUD) and not ingestion_key:
        raise ValueError("is SigNoz's cloud, which requires a key: set SIGNOZ_INGESTION_KEY")
    if ingestion_key:
        headers["signoz-ingestion-key"] = header_value(ingestion_key)
    return _endpoint(parts, headers, signal, protocol)


def otlp(signal: Signal, url: str, protocol: Protocol | None = None) -> Endpoint:
    """Return the endpoint of a base URL, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``; raise ValueError."""
    return _endpoint(*_split(url), signal, protocol)


def exact(url: str, protocol: Protocol | None = None) -> Endpoint:
    """Return the endpoint of a complete URL, as in ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``; raise ValueError."""
    parts, headers = _split(url)
    return Endpoint(url=urlunsplit(parts), headers=headers, protocol=protocol or _usual_protocol(parts))


def shown(url: str) -> str:
    """Return a URL that is safe to print: without user, password, query and fragment."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        origin = f"{parts.scheme}://" if parts.scheme else ""
        return f"{origin}{_host(parts)}{parts.path}{'?…' if parts.query else ''}"
    except ValueError:
        return "(no URL)"


def parse_headers(text: str) -> dict[str, str]:
    """Parse ``name=value,name2=value2``, percent-encoded as in W3C baggage; raise ValueError, without the values."""
    headers: dict[str, str] = {}
    for pair in filter(str.strip, text.split(",")):
        name, separator, value = pair.partition("=")
        name = unquote(name).strip().lower()
        if not separator or not _HEADER_NAME.fullmatch(name):
            raise ValueError("takes name=value pairs, separated by commas")
        headers[name] = header_value(unquote(value).strip())
    return headers


def header_value(text: str) -> str:
    """Return a header's value unchanged; raise ValueError for control characters and characters beyond ASCII."""
    if not _HEADER_VALUE.fullmatch(text):
        raise ValueError("has characters that a header may not contain, such as a line break")
    return text


def _secrets(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the words of the headers' values, and the user and password in Basic credentials."""
    for word in " ".join(headers.values()).split():
        yield word
        with suppress(ValueError):  # it is not base64, or not of text
            yield from base64.b64decode(word, validate=True).decode().split(":")


def _split(url: str) -> tuple[SplitResult, dict[str, str]]:
    """Return a URL's parts without its credentials, and the credentials as headers; raise ValueError."""
    url = url.strip()
    if "://" not in url:
        url = f"{'https' if url.rstrip('/').endswith(':443') else 'http'}://{url}"
    try:
        parts = urlsplit(url)
        host = _host(parts)
    except ValueError:
        raise ValueError(_NO_URL) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.netloc.endswith(":"):
        raise ValueError(_NO_URL)
    if not _VISIBLE.fullmatch(url):
        raise ValueError(_NO_URL)
    headers: dict[str, str] = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return parts._replace(netloc=host, fragment=""), headers


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port is not None else host


def _usual_protocol(parts: SplitResult) -> Protocol:
    return "grpc" if parts.port == GRPC_PORT else "http/protobuf"


def _endpoint(parts: SplitResult, headers: Mapping[str, str], signal: Signal, protocol: Protocol | None) -> Endpoint:
    """Return the endpoint of a base URL; for HTTP with the signal's path."""
    if (protocol or _usual_protocol(parts)) == "grpc":
        return Endpoint(url=f"{parts.scheme}://{parts.netloc}", headers=headers, protocol="grpc")
    path = re.sub(r"/v1/(traces|metrics|logs)/?$", "", parts.path).rstrip("/")
    return Endpoint(url=urlunsplit(parts._replace(path=f"{path}/v1/{signal}")), headers=headers)
