"""Metrics to an OTLP receiver, once an interval. Importing it imports OpenTelemetry.

A failed export needs no spool: sums are since the start of the process, so that the next export makes up for it.
Only the last one of a process has no next: it is tried again for as long as there is time.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)

from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.destinations import Delivered, Destination, Outcome, Retry
from host_client.telemetry.export.notices import Notices
from host_client.telemetry.export.sender import HANGS_AFTER

FIRST_DELAY = 0.25
"""Seconds before the last export is tried again; doubles."""

_logger = logging.getLogger(__name__)


class OtlpExporter(MetricExporter):
    """Hands metrics to a destination, and never raises. ``failures`` counts the exports that failed."""

    def __init__(self, destination: Destination) -> None:
        super().__init__()
        self.failures = 0
        self.delivered = False
        """Whether the last export was taken."""
        self._destination = destination
        self._asked_at: float | None = None
        self._notices = Notices(_logger)
        self._last_until = 0.0
        self._given_up = threading.Event()

    def persist(self, timeout: float) -> None:
        """Try what is exported from now on again, for so many seconds."""
        self._last_until = time.monotonic() + timeout

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send once; at the process's end until it is taken or time is up."""
        request = encode_metrics(metrics_data).SerializeToString()
        delay = FIRST_DELAY
        while not (delivered := self._send(request)):
            if time.monotonic() + delay > self._last_until or self._given_up.wait(delay):
                break
            delay *= 2
        self.delivered = delivered
        return MetricExportResult.SUCCESS if delivered else MetricExportResult.FAILURE

    def _send(self, request: bytes) -> bool:
        self._asked_at = time.monotonic()
        try:
            outcome: Outcome = self._destination.send(request)
        except Exception as error:  # telemetry never stops an agent
            outcome = Retry(None, brief(repr(error)))
        finally:
            self._asked_at = None
        if isinstance(outcome, Delivered) and not outcome.rejected:
            self._notices.forget("failed")
            return True
        self.failures += 1
        why = getattr(outcome, "why", "") or "the request is too large"
        self._notices.warn(
            "failed",
            "metrics to %s were not taken; this process's next export has them: %s",
            self.name,
            why,
        )
        return False

    @property
    def patience(self) -> float:
        """For how many seconds yet it may be waited for an answer before the receiver counts as one that hangs."""
        asked_at = self._asked_at
        return HANGS_AFTER if asked_at is None else asked_at + HANGS_AFTER - time.monotonic()

    @property
    def name(self) -> str:
        """What the receiver is called."""
        return self._destination.name

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Give up what is under way, and the connection."""
        self._given_up.set()
        self._destination.close()


class OtlpPart:
    """A reader that exports every ``interval`` seconds, and once more at the end."""

    def __init__(self, destination: Destination, interval: float) -> None:
        self.exporter = OtlpExporter(destination)
        self.reader = PeriodicExportingMetricReader(self.exporter, interval * 1000, interval * 1000)

    def close(self, timeout: float) -> bool:
        """Export once more, and end; one that hangs is waited for no longer."""
        self.exporter.delivered = False
        self.exporter.persist(timeout)
        until = time.monotonic() + timeout

        def end() -> None:
            self.reader.shutdown(timeout * 1000)  # pyright: ignore[reportUnknownMemberType]

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        while ending.is_alive() and (left := min(until - time.monotonic(), self.exporter.patience)) > 0:
            ending.join(left)
        return self.exporter.delivered
