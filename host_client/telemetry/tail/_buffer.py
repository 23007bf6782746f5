"""Buffer spans until their trace is decided, and until the next transaction of the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from host_client.telemetry.batch import Batch, EndedSpan, joined, spans_of

from .sampling import Sampler, Verdict

if TYPE_CHECKING:
    from host_client.telemetry.export.delivery import Delivery

MAX_UNWRITTEN = 512
"""Number of unwritten spans at which the buffer writes them to the delivery."""

Attempt = Callable[[Callable[[], object], int], None]
"""Calls a function, and counts the given number of spans as lost if it raises."""


class TraceBuffer:
    """Pass spans to a `Delivery` as the sampler decides on their traces. Used by one thread only.

    Several batches are written at a time, because a transaction of the spool costs as much as several spans.
    """

    def __init__(self, delivery: Delivery, sampler: Sampler, attempt: Attempt) -> None:
        self._delivery = delivery
        self._sampler = sampler
        self._attempt = attempt
        self._held_in_spool: set[str] = set()
        self._due: list[Batch] = []
        self._to_hold: dict[str, list[Batch]] = {}
        self._unwritten = 0

    def begin(self, trace_id: str, tier: str | None) -> None:
        """Take note that a session has spans in a trace."""
        self._follow(trace_id, self._sampler.begin(trace_id, tier))

    def end(self, trace_id: str) -> None:
        """Take note that a session has no more spans in a trace."""
        self._follow(trace_id, self._sampler.end(trace_id))

    def keep(self, trace_id: str, reason: str) -> None:
        """Keep a trace, whatever the sampler would decide."""
        self._follow(trace_id, self._sampler.keep(trace_id, reason))

    def add(self, trace_id: str, spans: Iterable[EndedSpan], batch: Batch) -> None:
        """Add ended spans of one trace: as ``spans`` for the sampler, and the same serialized in ``batch``."""
        verdict = self._sampler.observe(trace_id, spans, len(batch.body))
        self._follow(trace_id, verdict)
        if verdict is Verdict.DROP:
            return
        if verdict is Verdict.KEEP:
            self._due.append(batch)
        else:
            self._to_hold.setdefault(trace_id, []).append(batch)
            if self._sampler.is_full:
                self.decide_overdue()
        self._unwritten += batch.spans
        if self._unwritten >= MAX_UNWRITTEN:
            self.write()

    def decide_overdue(self) -> None:
        """Decide on the traces that have waited too long, or that exceed the sampler's limits."""
        self._follow_all(self._sampler.overdue())

    def decide_all(self) -> None:
        """Decide on every trace, because no more spans will come."""
        self._follow_all(self._sampler.conclude())

    def write(self) -> None:
        """Write the spans of kept and of undecided traces to the delivery."""
        due, self._due = self._due, []
        to_hold, self._to_hold = self._to_hold, {}
        self._unwritten = 0
        self._held_in_spool.update(to_hold)
        if due:
            self._attempt(partial(self._delivery.offer, joined(due)), spans_of(due))
        for trace_id, batches in to_hold.items():
            self._attempt(partial(self._delivery.hold, trace_id, joined(batches)), spans_of(batches))

    def _follow_all(self, decided: Sequence[tuple[str, Verdict]]) -> None:
        for trace_id, verdict in decided:
            self._follow(trace_id, verdict)

    def _follow(self, trace_id: str, verdict: Verdict) -> None:
        """Carry out a decision on the spans that were held for it."""
        if verdict is Verdict.HOLD:
            return
        unwritten = self._to_hold.pop(trace_id, [])
        if verdict is Verdict.KEEP:
            self._due += unwritten
        if trace_id in self._held_in_spool:
            self._held_in_spool.discard(trace_id)
            (self._delivery.release if verdict is Verdict.KEEP else self._delivery.discard)(trace_id)
