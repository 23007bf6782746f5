"""A plain OTLP receiver, SigNoz among them, over what its endpoint speaks."""

from __future__ import annotations

from host_client.telemetry.export.endpoints import Endpoint

from . import Destination


def otlp(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination."""
    # One of them: the other's library is not imported.
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
