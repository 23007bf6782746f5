"""Histograms in OpenTelemetry's data model: what was measured since the process began, by its labels.

The SDK's own instrument takes 19 us of a host for each measurement, of which every model request brings five; this
takes a tenth of it. A test holds it to the SDK's results. Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping

from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint, Metric

from . import instruments

MAX_SERIES = 2000
"""Most sets of labels of one histogram; what else is measured is under `OVERFLOW`, as in the SDK."""

_MANY = 64

OVERFLOW: Mapping[str, bool] = {"otel.metric.overflow": True}


class Series:
    """What was measured under one set of labels. Safe for threads, of which one measures."""

    __slots__ = ("_attributes", "_bounds", "_counts", "_lock", "_max", "_min", "_new", "_start", "_sum")

    def __init__(self, attributes: Mapping[str, str | bool], bounds: tuple[float, ...]) -> None:
        self._attributes = attributes
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._start = time.time_ns()
        self._sum: float = 0
        self._min, self._max = math.inf, -math.inf
        self._new: list[float] = []
        """What is not in the sums yet: to add up many at a time takes less."""
        self._lock = threading.Lock()

    def record(self, value: float) -> None:
        """Count a measurement; ``value`` is finite and not negative, in the metric's unit."""
        self._new.append(value)  # which needs no lock
        if len(self._new) >= _MANY:
            with self._lock:
                self._add_up()

    def _add_up(self) -> None:
        """Add what is new to the sums; the lock is held."""
        if not (new := self._new[:]):
            return
        del self._new[: len(new)]  # what came meanwhile stays
        for value in new:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value
        self._min, self._max = min(self._min, *new), max(self._max, *new)

    def point(self, now: int) -> HistogramDataPoint | None:
        """Return the sums so far; None if nothing was measured."""
        with self._lock:
            self._add_up()
            counts, about = tuple(self._counts), (self._sum, self._min, self._max)
        if not (total := sum(counts)):
            return None
        return HistogramDataPoint(self._attributes, self._start, now, total, about[0], counts, self._bounds, *about[1:])


class Recorder:
    """One histogram. Safe for threads, of which one measures."""

    def __init__(self, metric: instruments.Metric) -> None:
        self._metric = metric
        self._series: dict[frozenset[tuple[str, str | bool]], Series] = {}

    def record(self, value: float, labels: Mapping[str, str]) -> None:
        """Count a measurement; ``value`` is finite and not negative, in the metric's unit."""
        self.series(labels).record(value)

    def series(self, labels: Mapping[str, str]) -> Series:
        """Return where measurements with these labels go, for one who has many."""
        return self._series.get(frozenset(labels.items())) or self._further(labels)

    def _further(self, labels: Mapping[str, str]) -> Series:
        attributes = dict(labels) if len(self._series) < MAX_SERIES - 1 else OVERFLOW
        return self._series.setdefault(frozenset(attributes.items()), Series(attributes, self._metric.buckets))

    def collected(self) -> Metric | None:
        """Return what was measured; None if nothing was."""
        metric, now = self._metric, time.time_ns()
        points = [point for series in list(self._series.values()) if (point := series.point(now)) is not None]
        if not points:
            return None
        return Metric(metric.name, metric.what, metric.unit, Histogram(points, AggregationTemporality.CUMULATIVE))
