"""Build telemetry from its configuration: destinations, metrics, the ledger and the pipeline that feeds them.

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
    """Build the telemetry of a checked configuration; return it with a sentence for each part that is left out."""
    metrics, problems = metrics_of(config)
    observers: list[Observer] = []
    if metrics is not None:
        observers.append(metrics)
    ledger = Ledger(config.ledger) if config.ledger is not None else None
    if ledger is not None:
        observers.append(ledger)
    content = ContentFilter(config.sanitize_prompt) if config.sanitize_prompt is not None else None
    telemetry = Telemetry(
        _delivery(config),
        observers,
        sampling=_sampling(config),
        content=content,
        environment=config.environment,
        conventions=config.conventions,
    )
    if metrics is not None:
        metrics.watch(telemetry.counts, telemetry.delivery_ended)
    if ledger is not None:
        ledger.report_loss = telemetry.lose
    return telemetry, problems


def _sampling(config: TelemetryConfig) -> SamplingConfig:
    """Return the sampling with a share for users without a tier, who have the configured default tier."""
    sampling = config.sampling
    rate = sampling.tier_rates.get(config.tier or "", sampling.rate)
    return replace(sampling, tier_rates={**sampling.tier_rates, "": rate})


def remote_destinations(config: TelemetryConfig) -> Iterator[tuple[Destination, Endpoint]]:
    """Yield the destinations that spans are sent to over the network, each with its endpoint."""
    if not set(config.exporters) & {"langfuse", "phoenix", "signoz", "otlp"}:
        return
    # Needs packages of the telemetry extra.
    from host_client.telemetry.export.destinations.otlp import otlp

    for name in config.exporters:
        match name:
            case "langfuse" if config.langfuse is not None:
                from host_client.telemetry.export.destinations.langfuse import langfuse  # httpx: 0.1 s

                yield langfuse(config.langfuse, config.environment), config.langfuse
            case "phoenix" if config.phoenix is not None:
                from host_client.telemetry.export.destinations.phoenix import phoenix  # httpx: 0.1 s

                yield phoenix(config.phoenix, config.phoenix_project), config.phoenix
            case "signoz" if config.signoz is not None:
                yield otlp("signoz", config.signoz), config.signoz
            case "otlp" if config.otlp is not None:
                yield otlp("otlp", config.otlp), config.otlp
            case _:  # prometheus accepts no spans, and the console is local
                pass


def _delivery(config: TelemetryConfig) -> Delivery | None:
    destinations = [destination for destination, _ in remote_destinations(config)]
    if "console" in config.exporters:
        from host_client.telemetry.export.console import TreeExporter  # imports rich, which the others do not need

        destinations.append(Custom(TreeExporter(), "console", durable=False))
    destinations += [Custom(exporter) for exporter in config.custom_exporters]
    if not destinations:
        return None
    return Delivery(destinations, Spool(config.spool_directory, max_bytes=config.spool_max_bytes))
