"""Use any OpenTelemetry ``SpanExporter`` as a destination."""

from __future__ import annotations

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agent_runner.contract.otlp_messages import readable

from . import Delivered, Outcome, Retry


class Custom:
    """Send spans to a ``SpanExporter``. Spans for which it fails or raises are sent again.

    ``durable`` is False for an exporter that serves this process alone, such as the console's.
    """

    def __init__(self, exporter: SpanExporter, name: str = "", *, durable: bool = True) -> None:
        self.name = name or type(exporter).__name__
        self.key = self.name
        self.durable = durable
        self._exporter = exporter

    def send(self, request: bytes) -> Outcome:
        """Export the spans of a request; the exporter's exceptions reach the caller."""
        if self._exporter.export(readable(request)) is SpanExportResult.SUCCESS:
            return Delivered()
        return Retry(None, "the exporter reported a failure")

    def close(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()
