"""Export metrics to an OTLP receiver at an interval. Importing this module imports OpenTelemetry.

A failed export needs no spool: cumulative sums count from the start of the process, so the next export includes it;
deltas wait in memory. Only the last export of a process has no next one, so it is repeated for as long as there is
time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)

from agent_runner.contract.sanitize import brief
from host_client.telemetry.config import Temporality
from host_client.telemetry.export.destinations import Delivered, Destination, Outcome, Retry, explained
from host_client.telemetry.export.notices import Notices
from host_client.telemetry.export.sender import HANGS_AFTER

FIRST_DELAY = 0.25
"""Seconds before the last export is repeated; doubles each time."""

MAX_WAITING = 60
"""Maximum number of exports of deltas that wait for the receiver; beyond it the oldest is lost."""

DELTAS: dict[Temporality, tuple[type, ...]] = {
    "cumulative": (),
    "delta": (Counter, Histogram, ObservableCounter),
    "lowmemory": (Counter, Histogram),
}
"""Instruments that are exported as deltas, as OTLP's specification defines the preferences."""

_logger = logging.getLogger(__name__)


class OtlpExporter(MetricExporter):
    """Send metrics to a destination. Never raises.

    ``failures`` counts the requests that failed, ``lost`` the exports of deltas that are not sent again.
    """

    def __init__(self, destination: Destination, temporality: Temporality = "cumulative") -> None:
        deltas = DELTAS[temporality]
        super().__init__(preferred_temporality=dict.fromkeys(deltas, AggregationTemporality.DELTA))
        self.failures = 0
        self.lost = 0
        self.delivered = False
        """Set if the last export, and the deltas of earlier ones that waited, were accepted."""
        self._destination = destination
        self._sends_deltas = bool(deltas)
        self._waiting = deque[bytes](maxlen=MAX_WAITING if deltas else 1)
        self._sending_since: float | None = None
        self._notices = Notices(_logger)
        self._last_until = 0.0
        self._given_up = threading.Event()

    def persist(self, timeout: float) -> None:
        """Repeat failed exports from now on, for ``timeout`` seconds."""
        self._last_until = time.monotonic() + timeout

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send metrics once; after `persist`, until they are accepted or time is up."""
        lost_before = self.lost
        self.lost += self._sends_deltas and len(self._waiting) == MAX_WAITING
        self._waiting.append(encode_metrics(metrics_data).SerializeToString())
        delay = FIRST_DELAY
        while self._waiting:
            if self._send(self._waiting[0]):
                self._waiting.popleft()
            elif time.monotonic() + delay > self._last_until or self._given_up.wait(delay):
                break
            else:
                delay *= 2
        self.delivered = not self._waiting and self.lost == lost_before
        return MetricExportResult.SUCCESS if self.delivered else MetricExportResult.FAILURE

    def _send(self, request: bytes) -> bool:
        """Send a request; return whether that was the last time."""
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
        # Deltas that were refused would be refused again, and of those accepted in part the others would count twice.
        is_lost = self._sends_deltas and not isinstance(outcome, Retry)
        self.lost += is_lost
        then = "they are lost" if is_lost else "this process's next export includes them"
        self._notices.warn("failed", "metrics to %s were not accepted; %s: %s", self.name, then, why)
        return is_lost

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

    def __init__(self, destination: Destination, interval: float, temporality: Temporality = "cumulative") -> None:
        self.exporter = OtlpExporter(destination, temporality)
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
