"""Plain OTLP receivers, such as SigNoz, over HTTP or gRPC."""

from __future__ import annotations

from functools import partial

from host_client.telemetry.conventions import rename
from host_client.telemetry.export.endpoints import Endpoint

from . import Destination
from ._adapting import each_span

_MLFLOW = "x-mlflow-experiment-id"
"""A header that MLflow requires. MLflow 3.17 reads attributes by their names in v1.41 of the GenAI conventions."""


def otlp(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination of spans."""
    # The library of the other protocol is not imported.
    if endpoint.protocol == "grpc":
        from ._otlp_grpc import OtlpGrpc

        return OtlpGrpc(name, endpoint)
    from ._otlp_http import OtlpHttp

    if _MLFLOW in map(str.lower, endpoint.headers):
        return OtlpHttp(name, endpoint, partial(each_span, complete=partial(rename, conventions="both")))
    return OtlpHttp(name, endpoint)


def otlp_metrics(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination of serialized ``ExportMetricsServiceRequest``s."""
    if endpoint.protocol == "grpc":
        from ._otlp_grpc import METRICS, OtlpGrpc  # as above

        return OtlpGrpc(name, endpoint, METRICS)
    return otlp(name, endpoint)
