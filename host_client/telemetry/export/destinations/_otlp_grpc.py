"""Send OTLP over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import Endpoint

from . import Outcome, Refused, Retry, TooLarge, key_of
from ._answers import SLOWLY, of_response

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
"""Methods to call. The answers of both have the same form on the wire."""
_OPTIONS = (
    # The sender decides when to try again, so the channel must not wait by itself.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name, gRPC takes this as the time in which a connection must have been made.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.enable_retries", 0),
)
_LATER = (
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNAVAILABLE",
    "DATA_LOSS",
    "INTERNAL",
    "UNKNOWN",
)
_TOO_LARGE = "larger than max"
"""Text in the error of a message beyond the server's limit; a busy server answers with the same code."""


class OtlpGrpc:
    """Send OTLP requests to one endpoint over gRPC; ``https`` in its URL means TLS."""

    durable = True

    def __init__(self, name: str, endpoint: Endpoint, method: str = TRACES) -> None:
        self.name = name
        self.key = key_of(name, endpoint)
        self._endpoint = endpoint
        self._method = method
        self._channel: Any = None
        self._export: Callable[..., ExportTraceServiceResponse] | None = None

    def send(self, request: bytes) -> Outcome:
        """Send a request once."""
        import grpc  # pyright: ignore[reportMissingTypeStubs]  # imported at the first request, because it takes long

        try:
            export = self._connected(grpc)
            metadata = tuple((name.lower(), value) for name, value in self._endpoint.headers.items())
            response = export(request, timeout=self._endpoint.timeout, metadata=metadata)
        except grpc.RpcError as error:
            return of_error(error, self._endpoint.redact(error.details() or ""))
        except OSError as error:  # a certificate's file
            return Retry(SLOWLY, brief(f"{type(error).__name__}: {error}"), True)
        return of_response(response.partial_success.rejected_spans, response.partial_success.error_message)

    def _connected(self, grpc: Any) -> Callable[..., ExportTraceServiceResponse]:
        if self._export is None:
            endpoint = self._endpoint
            parts = urlsplit(endpoint.url)
            compression = grpc.Compression.NoCompression if endpoint.compression == "none" else grpc.Compression.Gzip
            if parts.scheme == "https":
                credentials = grpc.ssl_channel_credentials(
                    root_certificates=_read(endpoint.certificate),
                    private_key=_read(endpoint.client_key),
                    certificate_chain=_read(endpoint.client_certificate),
                )
                port = parts.netloc if parts.port else f"{parts.netloc}:443"
                self._channel = grpc.secure_channel(port, credentials, _OPTIONS, compression)
            else:
                self._channel = grpc.insecure_channel(parts.netloc, _OPTIONS, compression)
            # Without a serializer gRPC sends the bytes of the request.
            self._export = self._channel.unary_unary(
                self._method, response_deserializer=ExportTraceServiceResponse.FromString
            )
        assert self._export is not None
        return self._export

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()


def of_error(error: Any, details: str) -> Outcome:
    """Return the outcome of a failed call; ``error`` is a ``grpc.RpcError`` that is also a ``grpc.Call``."""
    code: str = error.code().name
    answer = brief(details)
    if code == "RESOURCE_EXHAUSTED" and _TOO_LARGE in answer:
        return TooLarge(f"{code}: the request is too large", answer)
    if code == "INVALID_ARGUMENT":
        return Refused(code, answer)
    if code in _LATER or code == "RESOURCE_EXHAUSTED":
        return Retry(_retry_delay(dict(error.trailing_metadata() or ())), code, answer=answer)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return Retry(SLOWLY, f"{code}: the key is missing or wrong", True, answer)
    return Retry(SLOWLY, f"{code}: is the address right?", True, answer)


def _retry_delay(metadata: Mapping[str, Any]) -> float | None:
    """Return the seconds that a server asks to wait, which are in one of two metadata entries; None if in neither."""
    info = RetryInfo()
    try:
        if isinstance(raw := metadata.get("grpc-status-details-bin"), bytes):
            has_info = any(detail.Unpack(info) for detail in Status.FromString(raw).details)
        elif isinstance(raw := metadata.get("google.rpc.retryinfo-bin"), bytes):
            info.MergeFromString(raw)
            has_info = True
        else:
            return None
    except DecodeError:
        return None
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9 if has_info else None


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None
