"""Export metrics to an OTLP receiver at an interval. Importing this module imports OpenTelemetry.

A failed export needs no spool: sums count from the start of the process, so the next export includes it. Only the last
export of a process has no next one, so it is repeated for as long as there is time.
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
from host_client.telemetry.export.destinations import Delivered, Destination, Outcome, Retry, explained
from host_client.telemetry.export.notices import Notices
from host_client.telemetry.export.sender import HANGS_AFTER

FIRST_DELAY = 0.25
"""Seconds before the last export is repeated; doubles each time."""

_logger = logging.getLogger(__name__)


class OtlpExporter(MetricExporter):
    """Send metrics to a destination. Never raises; ``failures`` counts the exports that failed."""

    def __init__(self, destination: Destination) -> None:
        super().__init__()
        self.failures = 0
        self.delivered = False
        """Set if the last export was accepted."""
        self._destination = destination
        self._sending_since: float | None = None
        self._notices = Notices(_logger)
        self._last_until = 0.0
        self._given_up = threading.Event()

    def persist(self, timeout: float) -> None:
        """Repeat failed exports from now on, for ``timeout`` seconds."""
        self._last_until = time.monotonic() + timeout

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send metrics once; after `persist`, until they are accepted or time is up."""
        request = encode_metrics(metrics_data).SerializeToString()
        delay = FIRST_DELAY
        while not (delivered := self._send(request)):
            if time.monotonic() + delay > self._last_until or self._given_up.wait(delay):
                break
            delay *= 2
        self.delivered = delivered
        return MetricExportResult.SUCCESS if delivered else MetricExportResult.FAILURE

    def _send(self, request: bytes) -> bool:
        self._sending_since = time.monotonic()
        try:
            outcome: Outcome = self._destination.send(request)
        except Exception as error:  # a fault in a destination must not end the reader's thread
            outcome = Retry(None, brief(repr(error)))
        finally:
            self._sending_since = None
        if isinstance(outcome, Delivered) and not outcome.rejected:
            self._notices.forget("failed")
            return True
        self.failures += 1
        why = outcome.why if isinstance(outcome, Delivered) else explained(outcome)
        self._notices.warn(
            "failed",
            "metrics to %s were not accepted; this process's next export includes them: %s",
            self.name,
            why,
        )
        return False

    @property
    def patience(self) -> float:
        """Return the seconds that are left until a receiver that has not answered counts as hanging."""
        sending_since = self._sending_since
        return HANGS_AFTER if sending_since is None else sending_since + HANGS_AFTER - time.monotonic()

    @property
    def name(self) -> str:
        """Return the receiver's name."""
        return self._destination.name

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Return True: exports are not queued."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop sending failed exports again, and close the connection to the destination."""
        self._given_up.set()
        self._destination.close()


class OtlpPart:
    """Export metrics to a destination every ``interval`` seconds, and once more at the end."""

    def __init__(self, destination: Destination, interval: float) -> None:
        self.exporter = OtlpExporter(destination)
        self.reader = PeriodicExportingMetricReader(self.exporter, interval * 1000, interval * 1000)

    def close(self, timeout: float) -> bool:
        """Export once more within ``timeout`` seconds, less if the receiver hangs; return whether it was accepted."""
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
