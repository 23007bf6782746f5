"""Spans to exporters. A failing exporter is counted and logged, and stops neither the agent nor the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_logger = logging.getLogger(__name__)


class Exporter(Protocol):
    """What any OpenTelemetry ``SpanExporter`` is."""

    def export(self, spans: Sequence[ReadableSpan]) -> object:
        """Send spans."""

    def shutdown(self) -> None:
        """Send what is left."""


class Telemetry:
    """A set of exporters; ``enabled`` False means that no OpenTelemetry module is imported."""

    def __init__(self, exporters: Sequence[Exporter] = (), *, enabled: bool = True) -> None:
        self.exporters = tuple(exporters)
        self.enabled = enabled
        self.failures: Counter[str] = Counter()

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Hand finished spans to every exporter."""
        for exporter in self.exporters:
            name = type(exporter).__name__
            try:
                outcome = exporter.export(spans)
            except Exception as error:  # an exporter is anybody's code
                self._failed(name, len(spans), repr(error))
            else:
                if getattr(outcome, "name", "SUCCESS") != "SUCCESS":
                    self._failed(name, len(spans), "it reported a failure")

    def _failed(self, name: str, spans: int, why: str) -> None:
        self.failures[name] += spans
        _logger.warning("exporter %s lost %d spans: %s", name, spans, why)


def telemetry_from(environ: Mapping[str, str], exporters: Sequence[Exporter] = ()) -> Telemetry:
    """Return the telemetry of an environment; ``OTEL_ENABLED=false`` or ``OTEL_SDK_DISABLED=true`` turn it off."""
    off = environ.get("OTEL_ENABLED", "").lower() == "false" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return Telemetry(exporters, enabled=not off)
