"""Serve metrics for Prometheus to scrape. Importing this module imports OpenTelemetry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, MetricsData
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client import Metric as Family

from host_client.telemetry.otlp import ENVIRONMENT


class Registry(CollectorRegistry):
    """A registry that serves one scrape at a time: of two at once, OpenTelemetry's collector may answer one twice."""

    def __init__(self) -> None:
        super().__init__()
        self._scraping = threading.Lock()

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of all collectors."""
        with self._scraping:
            families = list(super().collect())
        yield from families


class BaseUnitReader(PrometheusMetricReader):
    """Expose milliseconds as seconds, because Prometheus's conventions, which promtool checks, ask for base units."""

    # The abstract method by which the SDK's `MetricReader` hands its subclasses what was collected. A view could rename
    # a metric, but not scale it.
    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        data = _in_base_units(metrics_data)
        super()._receive_metrics(data, timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType]


class PrometheusServer:
    """Serve metrics over HTTP. Raise OSError for an address that is in use or cannot be listened on."""

    def __init__(self, host: str, port: int) -> None:
        registry = Registry()
        self._server, self._thread = start_http_server(port, host, registry)
        self.reader = BaseUnitReader(
            registry=registry, scope_info_enabled=False, resource_attribute_filter=ENVIRONMENT.__eq__
        )
        self.port = int(self._server.server_port)

    def close(self, timeout: float) -> bool:
        """Stop listening; return True, because nothing is left to export."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout)
        return True


def _in_base_units(data: MetricsData) -> MetricsData:
    return replace(
        data,
        resource_metrics=[
            replace(
                of_resource,
                scope_metrics=[
                    replace(of_scope, metrics=[_in_seconds(metric) for metric in of_scope.metrics])
                    for of_scope in of_resource.scope_metrics
                ],
            )
            for of_resource in data.resource_metrics
        ],
    )


def _in_seconds(metric: Metric) -> Metric:
    if metric.unit != "ms" or not isinstance(metric.data, Histogram):
        return metric
    data = replace(metric.data, data_points=[_point_in_seconds(point) for point in metric.data.data_points])
    return replace(metric, name=metric.name.removesuffix(".ms"), unit="s", data=data)


def _point_in_seconds(point: HistogramDataPoint) -> HistogramDataPoint:
    bounds = tuple(bound / 1000 for bound in point.explicit_bounds)
    return replace(point, explicit_bounds=bounds, sum=point.sum / 1000, min=point.min / 1000, max=point.max / 1000)
