"""The state of one session in the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from host_client.telemetry.calls import ToolCalls


@dataclass(slots=True)
class MeasuredSession:
    """The labels of one session's metrics, and what its events and spans have named so far."""

    source: str
    customer: Mapping[str, str]
    model: str | None = None
    calls: ToolCalls = field(default_factory=ToolCalls)
    calls_by_agent: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """Numbers of calls by operation, by the span's id of the agent that is under way."""
