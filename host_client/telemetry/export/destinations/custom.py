"""Any OpenTelemetry ``SpanExporter`` as a destination."""

from __future__ import annotations

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from host_client.telemetry.otlp import readable

from . import Delivered, Outcome, Retry


class Custom:
    """Hands spans to an exporter; what it says has failed is tried again, and what it raises too.

    ``durable`` is False for one that is of use to this process alone, as the console's are.
    """

    def __init__(self, exporter: SpanExporter, name: str = "", *, durable: bool = True) -> None:
        self.name = name or type(exporter).__name__
        self.key = self.name
        self.durable = durable
        self._exporter = exporter

    def send(self, request: bytes) -> Outcome:
        """Export; what the exporter raises goes to the caller."""
        if self._exporter.export(readable(request)) is SpanExportResult.SUCCESS:
            return Delivered()
        return Retry(None, "the exporter reported a failure")

    def close(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()
