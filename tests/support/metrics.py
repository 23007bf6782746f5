"""Recorded metrics as values, by name and labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, MetricsData

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import AnyEvent, EventData

Labels = frozenset[tuple[str, str]]


def labels(**given: str) -> Labels:
    """Return labels; ``error__type`` is ``error.type``."""
    return frozenset((name.replace("__", "."), value) for name, value in given.items())


class Point(NamedTuple):
    """One set of labels' sum, and how many values a histogram summed."""

    sum: float
    recorded: int


class Kept:
    """A part of `Metrics` that keeps everything in memory."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()

    def close(self, timeout: float) -> bool:
        return True

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        return {metric.name: metric for metric in _metrics(data)} if data is not None else {}

    def points(self, name: str) -> dict[Labels, Point]:
        metric = self.metrics.get(name)
        return {} if metric is None else {_labels(point.attributes): _point(point) for point in metric.data.data_points}

    def total(self, name: str) -> float:
        return sum(point.sum for point in self.points(name).values())

    def values_of(self, label: str) -> set[str]:
        """Return all values that a label has on any metric."""
        found = (_labels(point.attributes) for metric in self.metrics.values() for point in metric.data.data_points)
        return {value for each in found for name, value in each if name == label}


def event(data: EventData, span_id: str = "a" * 16) -> AnyEvent:
    """Return the event with this data."""
    return p.event_of(data, seq=1, ts=1_800_000_000.0, trace_id="1" * 32, span_id=span_id)


def result(cost: float = 0.01, turn: int = 1, **more: Any) -> p.ResultData:
    """Return the result of a turn with this cost in US dollars."""
    about: dict[str, Any] = {
        "turn": turn,
        "result": "Done.",
        "is_error": False,
        "subtype": "success",
        "cost_usd": cost,
        "total_cost_usd": cost,
        "duration_ms": 1200.0,
        "duration_api_ms": 1000.0,
        "num_turns": 1,
        "usage": {},
        "model_usage": {},
        "session_id": "c",
    }
    return p.ResultData(**{**about, **more})


def _metrics(data: MetricsData) -> Iterator[Metric]:
    for of_resource in data.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            yield from of_scope.metrics


def _labels(attributes: object) -> Labels:
    return frozenset((str(name), str(value)) for name, value in dict(attributes or {}).items())  # pyright: ignore


def _point(point: object) -> Point:
    if isinstance(point, HistogramDataPoint):
        return Point(point.sum, point.count)
    return Point(getattr(point, "value", 0.0), 1)
