"""Configuration of telemetry as one frozen value. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from agent_runner.contract.sanitize import Sanitizer

from .conventions import Conventions
from .export.endpoints import PHOENIX_PROJECT, Endpoint
from .tail.sampling import SamplingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


Temporality = Literal["cumulative", "delta", "lowmemory"]
TEMPORALITIES: tuple[str, ...] = get_args(Temporality)


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """Configuration of telemetry. The defaults suit development; the environment is not read.

    ``exporters`` are names of `EXPORTERS`, ``custom_exporters`` any OpenTelemetry ``SpanExporter``.
    ``sanitize_prompt`` receives the text of a prompt, an answer or a tool's arguments, and returns the text that spans
    may hold. Without a ``spool_directory``, spans that are not delivered are lost when the process ends; without a
    ``ledger``, no costs are stored. ``metric_interval`` is in seconds; ``metric_temporality`` is that of metrics over
    OTLP. Each process adds its metrics to the ``metrics_textfile`` when it ends; ``pushgateway``, which needs one,
    receives the sums. ``tier`` is the tier of users whose session names none. ``conventions`` is the version of the
    GenAI conventions that spans and metrics follow.
    """

    enabled: bool = True
    environment: str = "development"
    exporters: tuple[str, ...] = ("console",)
    custom_exporters: Sequence[SpanExporter] = ()
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    langfuse: Endpoint | None = None
    phoenix: Endpoint | None = None
    phoenix_project: str = PHOENIX_PROJECT
    signoz: Endpoint | None = None
    signoz_metrics: Endpoint | None = None
    otlp: Endpoint | None = None
    otlp_metrics: Endpoint | None = None
    metric_interval: float = 60.0
    metric_temporality: Temporality = "cumulative"
    prometheus_host: str = "localhost"
    prometheus_port: int = 9464
    metrics_textfile: Path | None = None
    pushgateway: Endpoint | None = None
    spool_directory: Path | None = None
    spool_max_bytes: int = 256 * 1024 * 1024
    sanitize_prompt: Sanitizer | None = field(default=None, repr=False)
    user_label_limit: int = 1000
    tier: str | None = None
    conventions: Conventions = "v0.1.0"
    ledger: Path | None = None
