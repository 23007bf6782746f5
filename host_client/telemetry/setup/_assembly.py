"""Puts telemetry together: destinations, metrics and the ledger, and the pipeline that feeds them.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.costs.ledger import Ledger
from host_client.telemetry.export.content import ContentFilter
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations import Destination
from host_client.telemetry.export.destinations.custom import Custom
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.export.spool import Spool
from host_client.telemetry.metrics.observer import metrics_of
from host_client.telemetry.tail.pipeline import Observer, Telemetry
from host_client.telemetry.tail.sampling import SamplingConfig


def assemble(config: TelemetryConfig) -> tuple[Telemetry, tuple[str, ...]]:
    """Return the telemetry of a configuration that was checked, and a sentence for each part that is missing."""
    metrics, problems = metrics_of(config)
    observers: list[Observer] = []
    if metrics is not None:
        observers.append(metrics)
    if config.ledger is not None:
        observers.append(Ledger(config.ledger))
    content = ContentFilter(config.sanitize_prompt) if config.sanitize_prompt is not None else None
    telemetry = Telemetry(_delivery(config), observers, sampling=_sampling(config), content=content)
    if metrics is not None:
        metrics.watch(telemetry.counts)
    return telemetry, problems


def _sampling(config: TelemetryConfig) -> SamplingConfig:
    """Return the shares, with that of users without a tier among them."""
    sampling = config.sampling
    rate = sampling.tier_rates.get(config.tier or "", sampling.rate)
    return replace(sampling, tier_rates={**sampling.tier_rates, "": rate})


def remote_destinations(config: TelemetryConfig) -> Iterator[tuple[Destination, Endpoint]]:
    """Yield the receivers of spans that are elsewhere, and where."""
    if not set(config.exporters) & {"langfuse", "signoz", "otlp"}:
        return
    # Packages of the telemetry extra.
    from host_client.telemetry.export.destinations.otlp import otlp

    for name in config.exporters:
        match name:
            case "langfuse" if config.langfuse is not None:
                from host_client.telemetry.export.destinations.langfuse import langfuse  # httpx: 0.1 s

                yield langfuse(config.langfuse, config.environment), config.langfuse
            case "signoz" if config.signoz is not None:
                yield otlp("signoz", config.signoz), config.signoz
            case "otlp" if config.otlp is not None:
                yield otlp("otlp", config.otlp), config.otlp
            case _:  # Prometheus takes no spans
                pass


def _destinations(config: TelemetryConfig) -> Iterator[Destination]:
    for destination, _ in remote_destinations(config):
        yield destination
    if "console" in config.exporters:
        yield _console()
    for exporter in config.custom_exporters:
        yield Custom(exporter)


def _console() -> Destination:
    from host_client.telemetry.export.console import TreeExporter  # rich, which the others do not need

    return Custom(TreeExporter(), "console", durable=False)


def _delivery(config: TelemetryConfig) -> Delivery | None:
    receivers = list(_destinations(config))
    if not receivers:
        return None
    return Delivery(receivers, Spool(config.spool_directory, max_bytes=config.spool_max_bytes))
