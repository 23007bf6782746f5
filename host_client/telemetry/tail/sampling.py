"""Decide which traces are kept, once for each trace, after its spans have ended. Pure except for its clock.

A trace is kept for an error outside of its tool calls. Others are kept by a share: a general one, one for traces with a
failed tool call, and one for traces with more model and tool work than a threshold (waiting for a person does not
count). The highest share that applies counts, and the trace id alone decides whether a trace falls within it, so that
every host decides alike. A trace that is certain to be kept is kept at once; on others the decision is made when their
session ends. Later spans of the trace share the decision. Only a further session in a dropped trace opens it again, for
the spans from then on.
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
"""Maximum number of decisions that are remembered for late spans."""

_SUBAGENT_TOOLS = ("Agent", "Task")
"""Tools whose calls consist of requests and calls that are counted themselves."""


class Verdict(Enum):
    """The decision on a trace."""

    KEEP = "keep"
    DROP = "drop"
    HOLD = "hold"
    """Not decided yet: the spans wait."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Shares of traces that are kept, from 0 to 1. Traces with an error outside of their tool calls are always kept.

    ``rate`` is the general share, which ``tier_rates`` replaces for users of a tier. ``slow_rate`` applies to traces
    with more than ``slow_ms`` milliseconds of model and tool work (default: twice the general share), and
    ``tool_error_rate`` to traces with a failed tool call (default: the general share). The highest that applies counts.
    """

    rate: float = 1.0
    slow_ms: float = 5000.0
    slow_rate: float | None = None
    tier_rates: Mapping[str, float] = field(default_factory=dict[str, float])
    tool_error_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class SamplerLimits:
    """Limits of what waits for a decision; beyond them decisions are made early.

    A trace that is too large or too old is kept, because long traces are the interesting ones. If there are too many
    traces, the oldest is decided by its spans so far.
    """

    traces: int = 10_000
    spans: int = 1_000
    """Maximum number of spans of one trace."""
    trace_bytes: int = 8 * 1024 * 1024
    total_bytes: int = 64 * 1024 * 1024
    """Maximum number of bytes of all undecided traces; beyond it the largest traces are kept."""
    age_seconds: float = 2 * 3600.0


@dataclass(slots=True)
class _Trace:
    began: float
    rate: float
    """The general share for the user."""
    sessions: int = 0
    spans: int = 0
    size: int = 0
    work: list[Interval] = field(default_factory=list[Interval])


class Sampler:
    """Decide which traces are kept. Used by one thread only. ``reasons`` counts the decisions by their reason."""

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
        """Return the number of undecided traces."""
        return len(self._open)

    def begin(self, trace_id: str, tier: str | None = None) -> Verdict:
        """Take note of a session that begins in a trace; a dropped trace is undecided again."""
        if self._decided.get(trace_id) is Verdict.DROP:
            del self._decided[trace_id]
        trace = self._trace(trace_id, tier)
        if trace is None:
            return self._decided[trace_id]
        trace.sessions += 1
        if _falls_within(trace_id, trace.rate):
            return self._decide(trace_id, Verdict.KEEP, "ratio")
        return Verdict.HOLD

    def keep(self, trace_id: str, reason: str) -> Verdict:
        """Decide to keep a trace for a reason of the caller's."""
        if self._decided.get(trace_id) is Verdict.KEEP:
            return Verdict.KEEP
        self._decided.pop(trace_id, None)
        self._trace(trace_id, None)
        return self._decide(trace_id, Verdict.KEEP, reason)

    def observe(self, trace_id: str, spans: Iterable[EndedSpan], size: int = 0) -> Verdict:
        """Take note of ended spans of ``size`` bytes; return the decision on all spans of the trace so far."""
        trace = self._trace(trace_id, None)
        if trace is None:
            return self._decided[trace_id]
        for span in spans:
            if span.is_error:
                if not _is_of_tool_call(span):
                    return self._decide(trace_id, Verdict.KEEP, "error")
                if _falls_within(trace_id, self._config.tool_error_rate or 0.0):
                    return self._decide(trace_id, Verdict.KEEP, "tool error")
            trace.spans += 1
            if (interval := _work(span)) is not None:
                trace.work.append(interval)
        trace.size += size
        self._held_bytes += size
        if trace.spans > self._limits.spans or trace.size > self._limits.trace_bytes:
            return self._decide(trace_id, Verdict.KEEP, "large")
        return Verdict.HOLD

    def end(self, trace_id: str) -> Verdict:
        """Take note of a session that has ended; all its spans were observed before."""
        trace = self._open.get(trace_id)
        if trace is None:
            return self._decided.get(trace_id, Verdict.DROP)
        trace.sessions -= 1
        return self._conclude(trace_id, trace) if trace.sessions <= 0 else Verdict.HOLD

    @property
    def is_full(self) -> bool:
        """Return whether the undecided spans exceed their total limit of bytes."""
        return self._held_bytes > self._limits.total_bytes

    def conclude(self) -> list[tuple[str, Verdict]]:
        """Decide on all traces by their spans so far, and return the decisions."""
        return [(trace_id, self._conclude(trace_id, trace)) for trace_id, trace in list(self._open.items())]

    def overdue(self) -> list[tuple[str, Verdict]]:
        """Decide on traces that exceed the limits, and return the decisions."""
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
        """Return the state of an undecided trace, a new one for an unknown trace; None for a decided trace."""
        if trace_id in self._decided:
            return None
        if trace_id not in self._open:
            rate = self._config.tier_rates.get(tier or "", self._config.rate)
            self._open[trace_id] = _Trace(self._clock(), rate)
        return self._open[trace_id]

    def _conclude(self, trace_id: str, trace: _Trace) -> Verdict:
        is_slow = seconds(union(trace.work)) * 1000 > self._config.slow_ms
        slow_rate = self._config.slow_rate if self._config.slow_rate is not None else min(1.0, 2 * trace.rate)
        if is_slow and _falls_within(trace_id, slow_rate):
            return self._decide(trace_id, Verdict.KEEP, "slow")
        if _falls_within(trace_id, trace.rate):
            return self._decide(trace_id, Verdict.KEEP, "ratio")
        return self._decide(trace_id, Verdict.DROP, "ratio")

    def _decide(self, trace_id: str, verdict: Verdict, reason: str) -> Verdict:
        self._held_bytes -= self._open.pop(trace_id).size
        self._decided[trace_id] = verdict
        if len(self._decided) > MAX_REMEMBERED:
            self._decided.popitem(last=False)
        self.reasons[f"{verdict.value}:{reason}"] += 1
        return verdict


def _falls_within(trace_id: str, rate: float) -> bool:
    """Return whether the trace is in the share, as OpenTelemetry's TraceIdRatioBased sampler decides.

    A trace that is in a share is also in every higher one.
    """
    return int(trace_id[16:], 16) < round(rate * 2**64)


def _is_of_tool_call(span: EndedSpan) -> bool:
    """Return whether a span is a tool call's, or that of its approval or its subagent, which fail with the call."""
    operation = span.attributes.get("gen_ai.operation.name")
    is_subagent = operation == "invoke_agent" and span.name != "agent.execute"
    return operation == "execute_tool" or is_subagent or span.name == "agent.approval"


def _work(span: EndedSpan) -> Interval | None:
    """Return the interval of the model's or a tool's work in a span, None if it has none."""
    attributes, start, end = span.attributes, span.start_time, span.end_time
    match attributes.get("gen_ai.operation.name"):
        case "chat":
            return start, max(start, end)
        case "execute_tool" if attributes.get("gen_ai.tool.name") not in _SUBAGENT_TOOLS:
            # A person is waited for before the execution. A denied call has no execution time.
            if (executed := _nanoseconds(attributes.get("tool.execution_ms"), end - start)) is not None:
                start = end - executed
            elif (waited := _nanoseconds(attributes.get("tool.approval_wait_ms"), end - start)) is not None:
                start += waited
            return start, max(start, end)
        case _:
            return None


def _nanoseconds(milliseconds: object, most: int) -> int | None:
    """Return a number of milliseconds in nanoseconds; None if it is not a number from 0 to ``most`` nanoseconds."""
    if isinstance(milliseconds, int | float) and 0 <= milliseconds * 1e6 <= most:
        return int(milliseconds * 1e6)
    return None
