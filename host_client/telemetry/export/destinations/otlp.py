"""Plain OTLP receivers, such as SigNoz, over HTTP or gRPC."""

from __future__ import annotations

from host_client.telemetry.export.endpoints import Endpoint

from . import Destination


def otlp(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination of spans."""
    # The library of the other protocol is not imported.
    if endpoint.protocol == "grpc":
        from ._otlp_grpc import OtlpGrpc

        return OtlpGrpc(name, endpoint)
    from ._otlp_http import OtlpHttp

    return OtlpHttp(name, endpoint)


def otlp_metrics(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination of serialized ``ExportMetricsServiceRequest``s."""
    if endpoint.protocol == "grpc":
        from ._otlp_grpc import METRICS, OtlpGrpc  # as above

        return OtlpGrpc(name, endpoint, METRICS)
    return otlp(name, endpoint)
