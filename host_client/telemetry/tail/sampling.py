"""Which traces are kept: one decision a trace, on the host, after the fact. Pure but for its clock.

A trace is kept for an error, for more model and tool work than a threshold (the wait for a person does not
count), or by a ratio that depends on the trace id alone, so that every host decides alike. What is kept for
sure is kept at once; what might be dropped is decided when its session ends. A decision stands: what
comes later of the trace shares it. A further session may still keep what comes from then on of one that was dropped.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from host_client.telemetry.batch import EndedSpan
from host_client.telemetry.intervals import Interval, seconds, union

MAX_REMEMBERED = 50_000
"""Decisions that late spans still find."""

_SUBAGENT_TOOLS = ("Agent", "Task")
"""Their calls are made of requests and calls that count by themselves."""


class Verdict(Enum):
    """What becomes of a trace's spans."""

    KEEP = "keep"
    DROP = "drop"
    HOLD = "hold"
    """Not decided: they wait."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The share of traces that is kept, from 0 to 1, of each kind; a trace with an error always is.

    ``slow_ms`` is in milliseconds of model and tool work. ``tier_rates`` takes the place of ``rate`` for
    users of a tier.
    """

    rate: float = 1.0
    slow_ms: float = 5000.0
    slow_rate: float = 1.0
    tier_rates: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class SamplerLimits:
    """How much may wait for a decision. What goes beyond is decided early.

    A trace that has become too large or too old is kept: what is long is what one looks for. Where there are
    too many, the oldest is decided by what is known of it.
    """

    traces: int = 10_000
    spans: int = 1_000
    """Of one trace."""
    trace_bytes: int = 8 * 1024 * 1024
    total_bytes: int = 64 * 1024 * 1024
    """Of all traces: beyond it the largest is decided first."""
    age_seconds: float = 2 * 3600.0


@dataclass(slots=True)
class _Trace:
    began: float
    ratio: float
    sessions: int = 0
    spans: int = 0
    size: int = 0
    work: list[Interval] = field(default_factory=list[Interval])


class Sampler:
    """Decides; touched from one thread only. ``reasons`` counts the decisions by their reason."""

    def __init__(
        self, config: SamplingConfig, limits: SamplerLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._limits = limits or SamplerLimits()
        self._clock = clock
        self._open: OrderedDict[str, _Trace] = OrderedDict()
        self._decided: OrderedDict[str, Verdict] = OrderedDict()
        self._held_bytes = 0
        self.reasons: Counter[str] = Counter()

    @property
    def undecided(self) -> int:
        """How many traces wait."""
        return len(self._open)

    def begin(self, trace_id: str, tier: str | None = None) -> Verdict:
        """A session of the trace begins; one that was dropped is open again."""
        if self._decided.get(trace_id) is Verdict.DROP:
            del self._decided[trace_id]
        trace = self._trace(trace_id, tier)
        if trace is None:
            return self._decided[trace_id]
        trace.sessions += 1
        if _falls_within(trace_id, trace.ratio):
            return self._decide(trace_id, Verdict.KEEP, "ratio")
        return Verdict.HOLD

    def keep(self, trace_id: str, reason: str) -> Verdict:
        """Keep the trace, whatever is known of it."""
        if self._decided.get(trace_id) is Verdict.KEEP:
            return Verdict.KEEP
        self._decided.pop(trace_id, None)
        self._trace(trace_id, None)
        return self._decide(trace_id, Verdict.KEEP, reason)

    def observe(self, trace_id: str, spans: Iterable[EndedSpan], size: int = 0) -> Verdict:
        """Spans of the trace have ended, ``size`` bytes of them; return what becomes of these and all before."""
        trace = self._trace(trace_id, None)
        if trace is None:
            return self._decided[trace_id]
        for span in spans:
            if span.is_error:
                return self._decide(trace_id, Verdict.KEEP, "error")
            trace.spans += 1
            if (interval := _work(span)) is not None:
                trace.work.append(interval)
        trace.size += size
        self._held_bytes += size
        if trace.spans > self._limits.spans or trace.size > self._limits.trace_bytes:
            return self._decide(trace_id, Verdict.KEEP, "large")
        return Verdict.HOLD

    def end(self, trace_id: str) -> Verdict:
        """A session of the trace has ended, and all its spans have been seen."""
        trace = self._open.get(trace_id)
        if trace is None:
            return self._decided.get(trace_id, Verdict.DROP)
        trace.sessions -= 1
        return self._conclude(trace_id, trace) if trace.sessions <= 0 else Verdict.HOLD

    @property
    def is_full(self) -> bool:
        """Whether more waits than may."""
        return self._held_bytes > self._limits.total_bytes

    def conclude(self) -> list[tuple[str, Verdict]]:
        """Decide everything by what is known of it: no more will come."""
        return [(trace_id, self._conclude(trace_id, trace)) for trace_id, trace in list(self._open.items())]

    def overdue(self) -> list[tuple[str, Verdict]]:
        """Decide what has waited too long, or is too many; return it."""
        now, decided = self._clock(), list[tuple[str, Verdict]]()
        while self._open:
            trace_id, trace = next(iter(self._open.items()))  # the oldest
            if now - trace.began > self._limits.age_seconds:
                decided.append((trace_id, self._decide(trace_id, Verdict.KEEP, "old")))
            elif len(self._open) > self._limits.traces:
                decided.append((trace_id, self._conclude(trace_id, trace)))
            else:
                break
        while self.is_full:
            largest = max(self._open, key=lambda trace_id: self._open[trace_id].size)
            decided.append((largest, self._decide(largest, Verdict.KEEP, "large")))
        return decided

    def _trace(self, trace_id: str, tier: str | None) -> _Trace | None:
        """Return the state of a trace, a new one if it is not known; None when it is decided."""
        if trace_id in self._decided:
            return None
        if trace_id not in self._open:
            ratio = self._config.tier_rates.get(tier or "", self._config.rate)
            self._open[trace_id] = _Trace(self._clock(), ratio)
        return self._open[trace_id]

    def _conclude(self, trace_id: str, trace: _Trace) -> Verdict:
        slow = seconds(union(trace.work)) * 1000 > self._config.slow_ms
        if slow and _falls_within(trace_id, self._config.slow_rate):
            return self._decide(trace_id, Verdict.KEEP, "slow")
        if _falls_within(trace_id, trace.ratio):
            return self._decide(trace_id, Verdict.KEEP, "ratio")
        return self._decide(trace_id, Verdict.DROP, "ratio")

    def _decide(self, trace_id: str, verdict: Verdict, reason: str) -> Verdict:
        self._held_bytes -= self._open.pop(trace_id).size
        self._decided[trace_id] = verdict
        if len(self._decided) > MAX_REMEMBERED:
            self._decided.popitem(last=False)
        self.reasons[f"{verdict.value}:{reason}"] += 1
        return verdict


def _falls_within(trace_id: str, ratio: float) -> bool:
    """Whether the trace is in the share, as OpenTelemetry's TraceIdRatioBased sampler decides it."""
    return int(trace_id[16:], 16) < round(ratio * 2**64)


def _work(span: EndedSpan) -> Interval | None:
    """Return when the model or a tool worked in this span."""
    attributes, start, end = span.attributes, span.start_time, span.end_time
    match attributes.get("gen_ai.operation.name"):
        case "chat":
            return start, max(start, end)
        case "execute_tool" if attributes.get("gen_ai.tool.name") not in _SUBAGENT_TOOLS:
            executed = attributes.get("tool.execution_ms")
            if isinstance(executed, int | float) and 0 <= executed * 1e6 <= end - start:
                start = end - int(executed * 1e6)  # what comes before is the wait
            return start, max(start, end)
        case _:
            return None
