"""What queries may name: the metrics of `host_client.telemetry.metrics.instruments`, and their names in Prometheus."""

from __future__ import annotations

from host_client.telemetry.metrics.instruments import BY_NAME

MODEL_LABELS = ("model", "gen_ai.request.model")


def labels(metric: str) -> tuple[str, ...]:
    """Return a metric's labels."""
    return BY_NAME[metric].labels


def model_label(metric: str) -> str | None:
    """Return the label that has the model's name; not every metric has one."""
    return next((label for label in MODEL_LABELS if label in labels(metric)), None)


def is_histogram(metric: str) -> bool:
    """Return whether a metric is a histogram, whose values count like a counter's."""
    return BY_NAME[metric].kind == "histogram"


def exposed(metric: str, part: str = "count") -> str:
    """Return the name in Prometheus; of a histogram that of one of its parts."""
    name = BY_NAME[metric].exposed
    return f"{name}_{part}" if is_histogram(metric) else name


def exposed_label(label: str) -> str:
    """Return a label's name in Prometheus."""
    return label.replace(".", "_")


def unit(metric: str) -> str:
    """Return the unit as OTLP has it (``ms``); Prometheus has durations in seconds."""
    return BY_NAME[metric].unit
