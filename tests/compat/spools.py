"""The destinations of the recorded spool, and the spans that a process delivers from it.

The destinations have host names without ports, by which the spool recognizes them. This process reaches them through
an HTTP proxy, which is the test's receiver.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from host_client.telemetry import SamplingConfig, TelemetryConfig, initialize_telemetry
from host_client.telemetry.export import endpoints
from tests.compat.canonical import CONVENTIONS, Json, by_id, readable_spans, spans_of
from tests.compat.relaying import flush_all
from tests.telemetry.receiver import WAIT_SECONDS, http_receiver

PATHS = {
    "otlp": "http://collector.example:4318/v1/traces",
    "signoz": "http://signoz.example:4318/v1/traces",
    "langfuse": "http://langfuse.example/api/public/otel/v1/traces",
}
CUSTOM = "CompatExporter"


class CompatExporter(SpanExporter):
    """A user's own exporter; the spool identifies it by the name of its class."""

    def __init__(self, is_down: bool = False) -> None:
        self.spans: list[ReadableSpan] = []
        self._is_down = is_down

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.FAILURE if self._is_down else SpanExportResult.SUCCESS


def config(
    spool: Path,
    custom: CompatExporter,
    *,
    destinations: Sequence[str] = (*PATHS, CUSTOM),
    ledger: Path | None = None,
    tier_rates: Mapping[str, float] | None = None,
) -> TelemetryConfig:
    """Return a telemetry configuration with every kind of destination, or with the given ones."""
    return TelemetryConfig(
        environment="staging",
        conventions=CONVENTIONS,
        exporters=tuple(name for name in destinations if name != CUSTOM),
        otlp=endpoints.otlp("traces", "http://collector.example:4318"),
        signoz=endpoints.signoz("http://signoz.example:4318", "an-ingestion-key"),
        langfuse=endpoints.langfuse("http://langfuse.example", "pk-lf-compat", "sk-lf-compat"),
        custom_exporters=[custom] if CUSTOM in destinations else [],
        sampling=SamplingConfig(rate=1.0, slow_ms=1e9, tier_rates=tier_rates or {}),
        spool_directory=spool,
        ledger=ledger,
    )


def delivered_of(spool: Path, *destinations: str) -> dict[str, dict[str, Json]]:
    """Deliver a spool from this process; return the spans of each destination (default: all) by span id."""
    names = destinations or (*PATHS, CUSTOM)
    custom = CompatExporter()
    with http_receiver() as receiver, _proxy(receiver.url):
        telemetry = initialize_telemetry(config(spool, custom, destinations=names))
        flush_all(telemetry, WAIT_SECONDS)
        assert telemetry.shutdown(WAIT_SECONDS), telemetry.counts()
        requests = list(receiver.requests)
    paths = {PATHS[name]: name for name in names if name != CUSTOM}
    found: dict[str, list[Json]] = {name: [] for name in names}
    for request in requests:
        found[paths[request.path]] += spans_of(request.body)
    if CUSTOM in found:
        found[CUSTOM] += readable_spans(custom.spans)
    return {name: by_id(spans) for name, spans in found.items()}


@contextmanager
def _proxy(url: str) -> Generator[None]:
    """Use a proxy for plain HTTP within the block, through the environment's variables."""
    names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["http_proxy"] = url
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
