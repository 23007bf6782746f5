"""A plain OTLP receiver, SigNoz among them, over what its endpoint speaks."""

from __future__ import annotations

from host_client.telemetry.endpoints import Endpoint

from . import Destination


def otlp(name: str, endpoint: Endpoint) -> Destination:
    """Return an endpoint as a destination."""
    # One of them: the other's library is not imported.
    if endpoint.protocol == "grpc":
        from .otlp_grpc import OtlpGrpc

        return OtlpGrpc(name, endpoint)
    from .otlp_http import OtlpHttp

    return OtlpHttp(name, endpoint)
