"""The pipeline: queues events and spans of sessions, and processes them in a thread of its own.

Observers, which are the metrics and the ledger, get all events and spans. Destinations get the spans of the traces that
the sampler keeps. No call blocks a session or raises into it. Losses are counted and logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent_runner.contract.protocol import Result
from agent_runner.contract.sanitize import preview
from host_client.telemetry.batch import Batch, EndedSpan
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.conventions import Conventions, rename

from ._buffer import TraceBuffer
from .sampling import Sampler, SamplingConfig

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from agent_runner.contract.protocol import AnyEvent
    from host_client.telemetry.export.content import ContentFilter
    from host_client.telemetry.export.delivery import Delivery

MAX_QUEUED = 20_000
"""Maximum number of queued items; further ones are dropped and counted."""

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Maximum size of the queued items in bytes."""

TICK_SECONDS = 1.0
"""Seconds between two checks of the thread for events, which do not wake it, and for traces that wait too long."""

MAX_TAKEN_OVER = 50_000
"""Maximum number of traces that are remembered as taken over."""

_VITAL = ("session", "result")
"""Kinds of items that costs and decisions depend on. Their limits are twice as high."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Who:
    """The user, tenant and own attributes of a session, and the model and tools that the host asked for by name."""

    session_id: str
    user_id: str | None = None
    tenant_id: str | None = None
    tier: str | None = None
    model: str | None = None
    tools: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


class HandOver(NamedTuple):
    """A queued item: its kind, the work to do, the number of its spans or events, and their size in bytes."""

    kind: str
    work: Callable[[], object]
    number: int = 1
    size: int = 0


class Observer(Protocol):
    """A reader of all events and spans, of kept and of dropped traces. Called from one thread.

    ``replayed`` means that another process, which died, has observed the same before: it is not to be counted again.
    """

    def begin(self, who: Who, calls: ToolCalls) -> None:
        """Take note that a session begins. Its trace feeds ``calls``, before `observe` is called for an event."""

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Observe an event of a session."""

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Observe a span that has ended."""

    def end(self, who: Who) -> None:
        """Take note that a session has ended."""

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until nothing waits to be written; return whether nothing does."""
        ...

    def close(self, timeout: float) -> bool:
        """Write the rest within ``timeout`` seconds; return whether all was written."""
        ...


class Telemetry:
    """Telemetry of a process: takes the events and spans of sessions, and passes them to observers and destinations.

    `initialize_telemetry` returns one. A bare ``Telemetry()`` discards everything. ``environment`` is the name of the
    deployment for spans whose resource names none. Destinations get spans with the names of the GenAI ``conventions``.
    With ``enabled`` False no OpenTelemetry module is imported.
    """

    def __init__(
        self,
        delivery: Delivery | None = None,
        observers: Sequence[Observer] = (),
        *,
        sampling: SamplingConfig | None = None,
        content: ContentFilter | None = None,
        environment: str | None = None,
        conventions: Conventions = "v0.1.0",
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self.preview: Callable[[str], str] = preview if content is None else content.preview
        """Returns the part of a prompt that a sandbox's metadata may hold."""
        self.lost: Counter[str] = Counter()
        """Numbers of spans and events that were lost before the delivery, by reason."""
        self.delivery_ended = threading.Event()
        """Set when the numbers of `counts` are final."""
        if delivery is None:
            self.delivery_ended.set()
        self._delivery = delivery
        self._observers = tuple(observers)
        self._content = content
        self._environment = environment
        self._conventions: Conventions = conventions
        sampler = Sampler(sampling or SamplingConfig())
        self._buffer = TraceBuffer(delivery, sampler, self._attempt) if delivery is not None else None
        self._taken_over: dict[str, None] = {}
        """Traces of which another process, which died, may have stored spans; the oldest first."""
        self._lock = threading.Lock()
        self._waiting: list[HandOver] = []
        self._pending = self._pending_bytes = 0
        """Number and size of the items that wait or that the thread works on."""
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        """Set while the lock is held, so that nothing is queued afterwards."""
        self._ending = threading.Lock()
        self._reported = 0
        """Number of losses that `flush` or `shutdown` has reported."""
        self._all_delivered = False

    # -- called by sessions; never blocks, never raises ------------------------------------------------

    @property
    def idle(self) -> bool:
        """Return whether everything is discarded: telemetry is off, or has neither a destination nor an observer."""
        return not self.enabled or (self._delivery is None and not self._observers)

    def begin(self, trace_id: str, who: Who, calls: ToolCalls | None = None) -> None:
        """Tell the observers that a session begins, and admit its spans to a trace.

        ``calls`` follows the session's tool calls: the caller gives it each event before it calls `observe`.
        """
        self._hand_over(HandOver("session", partial(self._begin, trace_id, who, calls or ToolCalls())))

    def join(self, trace_id: str, who: Who) -> None:
        """Take note that the session has spans in a further trace."""
        self._hand_over(HandOver("session", partial(self._join, trace_id, who)))

    def adopt(self) -> None:
        """Wait until the spool's files of dead processes have been taken over, for 10 seconds at most."""
        if self._delivery is not None:
            self._delivery.take_over(time.monotonic())

    def take_over(self, trace_ids: Sequence[str]) -> None:
        """Take note that a session of a process that died goes on here: after `adopt`, before its spans are exported.

        From now on, destinations get only the spans of its traces that are not recorded in the spool's directory.
        """
        self._hand_over(HandOver("session", partial(self._take_over, trace_ids)))

    def export(self, spans: Batch, *, replayed: bool = False) -> None:
        """Export ended spans. ``replayed`` spans are exported again: the process that did so first died."""
        self._hand_over(HandOver("span", partial(self._export, spans, replayed), spans.spans, len(spans.body)))

    def observe(self, event: AnyEvent, who: Who, size: int = 0, *, replayed: bool = False) -> None:
        """Observe an event of ``size`` bytes. A process that died has observed ``replayed`` events before."""
        if self._observers:
            kind = "result" if isinstance(event, Result) and not replayed else "event"
            self._hand_over(HandOver(kind, partial(self._observe, event, who, replayed), 1, size))

    def end(self, trace_ids: Sequence[str], who: Who) -> None:
        """End a session in its traces, or leave it to another process; all its spans were exported before."""
        self._hand_over(HandOver("session", partial(self._end, trace_ids, who)))

    def _hand_over(self, item: HandOver) -> None:
        """Queue an item, or count it as lost if the queue is full or closed."""
        if self.idle:
            return
        room = 2 if item.kind in _VITAL else 1
        with self._lock:
            is_full = self._pending >= MAX_QUEUED * room or self._pending_bytes + item.size > MAX_QUEUED_BYTES * room
            why = "after shutdown" if self._is_closed else "queue full" if is_full else None
            if why is None:
                self._queue(item)
        if why is not None:
            self.lose(f"{item.kind}: {why}", item.number)
        elif item.kind != "event":  # an event can wait for the next check, and waking the thread costs more than it
            self._awake.set()

    def _queue(self, item: HandOver) -> None:
        """Append an item, and start the thread with the first one. The caller holds the lock."""
        self._waiting.append(item)
        self._pending += 1
        self._pending_bytes += item.size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandspan-telemetry", daemon=True)
            self._thread.start()

    def lose(self, reason: str, count: int) -> None:
        """Count lost spans or events; the first of a reason is logged."""
        with self._lock:
            is_first = not self.lost[reason]
            self.lost[reason] += count
        if is_first:
            _logger.warning("telemetry was lost (%s); further losses of this kind are counted and not logged", reason)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of exported, retried, spooled and dropped spans, for each destination; drops by reason."""
        delivered = self._delivery.counts() if self._delivery is not None else {}
        counts = {name: each.by_outcome() for name, each in delivered.items()}
        if self._content is not None and self._content.withheld:
            counts["sanitize_prompt"] = {"withheld": self._content.withheld}
        with self._lock:
            lost = {f"dropped: {reason}": count for reason, count in self.lost.items()}
        return counts | ({"pipeline": lost} if lost else {})

    # -- the end -----------------------------------------------------------------------------------------

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait at most ``timeout`` seconds until all spans so far are delivered and all costs are written.

        Return whether they are, and nothing was lost since the last call. Spans of undecided traces count as neither
        delivered nor lost.
        """
        until = time.monotonic() + timeout
        parts = (*([self._delivery] if self._delivery is not None else []), *self._observers)
        done = self._drain(until) and all(part.flush(max(0.0, until - time.monotonic())) for part in parts)
        return self._lost_nothing() and done

    def write(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until all spans so far are in the spool; return whether they are.

        They are in memory only if the spool has no directory or its disk fails.
        """
        return self._drain(time.monotonic() + timeout)

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Decide on all traces, deliver what is possible in ``timeout`` seconds, and end. Further calls do nothing.

        Return whether all was delivered and nothing was lost since the last `flush`; further calls return the same. The
        next process that uses the spool directory sends the spans that are left in it.
        """
        if not self._ending.acquire(timeout=timeout):  # another thread is in this method
            return False
        try:
            if not self._is_closed:
                self._all_delivered = self._end_all(time.monotonic() + timeout)
            return self._all_delivered
        finally:
            self._ending.release()

    def _end_all(self, until: float) -> bool:
        if self._buffer is not None:
            self._require(HandOver("session", self._buffer.decide_all))
        drained = self._drain(until)
        with self._lock:
            self._is_closed = True
            undone, self._waiting = self._waiting, []
        self._lose_all(undone)
        self._awake.set()
        closed = self._close_parts(until)
        return self._lost_nothing() and closed and drained

    def _close_parts(self, until: float) -> bool:
        """Close observers and delivery in parallel, so that a slow one does not take the time of the others."""
        parts = (*self._observers, *([self._delivery] if self._delivery is not None else []))
        closed: list[bool] = []

        def close(part: Observer | Delivery) -> None:
            try:
                closed.append(part.close(max(0.1, until - time.monotonic())))
            except Exception:  # a fault in one part must not keep the others from closing
                self._failed(part)
            finally:
                if part is self._delivery:
                    self.delivery_ended.set()

        threads = [threading.Thread(target=close, args=(part,), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(closed) == len(parts) and all(closed)

    def _drain(self, until: float) -> bool:
        """Wait until the thread has processed all items so far; return whether it has."""
        if self._thread is None or self._is_closed:
            return True
        done = threading.Event()

        def write() -> None:
            if self._buffer is not None:
                self._buffer.write()
            done.set()

        self._require(HandOver("flush", write, 0))
        return done.wait(max(0.0, until - time.monotonic()))

    def _require(self, item: HandOver) -> None:
        """Queue an item even if the queue is full, unless nothing was ever queued."""
        with self._lock:
            if self._thread is not None:
                self._queue(item)
        self._awake.set()

    def _lost_nothing(self) -> bool:
        """Return whether nothing was lost since the last call."""
        with self._lock:
            before, self._reported = self._reported, sum(self.lost.values())
            return before == self._reported

    def _lose_all(self, items: Sequence[HandOver]) -> None:
        for item in items:
            if item.number:
                self.lose(f"{item.kind}: shutdown", item.number)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._is_closed:
            self._awake.wait(TICK_SECONDS)
            self._awake.clear()
            with self._lock:
                items, self._waiting = self._waiting, []
            self._do(items)
            if self._buffer is not None and time.monotonic() - checked > TICK_SECONDS:
                checked = time.monotonic()
                self._attempt(self._buffer.decide_overdue, 1)

    def _do(self, items: Sequence[HandOver]) -> None:
        """Process the items, then write the spans among them."""
        for number, item in enumerate(items):
            if self._is_closed:
                self._lose_all(items[number:])
                break
            self._attempt(item.work, item.number)
        if self._buffer is not None:
            self._buffer.write()
        with self._lock:
            self._pending -= len(items)
            self._pending_bytes -= sum(item.size for item in items)

    def _attempt(self, work: Callable[[], object], number: int) -> None:
        try:
            work()
        except Exception:  # the thread serves all sessions, so a fault in one item must not end it
            self.lose("fault of the pipeline", number)
            _logger.exception("a part of telemetry failed; the agent goes on")

    def _begin(self, trace_id: str, who: Who, calls: ToolCalls) -> None:
        self._join(trace_id, who)
        self._each(lambda observer: observer.begin(who, calls))

    def _join(self, trace_id: str, who: Who) -> None:
        if self._buffer is not None:
            self._buffer.begin(trace_id, who.tier)

    def _end(self, trace_ids: Sequence[str], who: Who) -> None:
        self._each(lambda observer: observer.end(who))
        if self._buffer is not None:
            for trace_id in trace_ids:
                self._buffer.end(trace_id)

    def _take_over(self, trace_ids: Sequence[str]) -> None:
        self._taken_over.update(dict.fromkeys(trace_ids))
        while len(self._taken_over) > MAX_TAKEN_OVER:
            del self._taken_over[next(iter(self._taken_over))]

    def _observe(self, event: AnyEvent, who: Who, replayed: bool) -> None:
        self._each(lambda observer: observer.observe(event, who, replayed=replayed))

    def _export(self, spans: Batch, replayed: bool) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        from host_client.telemetry import otlp  # not loaded with telemetry off

        for trace_id, request in otlp.by_trace(ExportTraceServiceRequest.FromString(spans.body)).items():
            ended = otlp.ended_spans(request)
            for span in ended:
                self._each(partial(_show, span, replayed))
            if self._buffer is None:
                continue
            if replayed:
                # The spans that the dead process held are sent from its spool, so the rest of the trace is kept too.
                self._buffer.keep(trace_id, "taken over")
            if self._environment is not None:
                otlp.name_environment(request, self._environment)
            for span in otlp.spans_of(request):
                rename(span, self._conventions)
                if self._content is not None:
                    self._content.clean(span)
            if trace_id in self._taken_over:
                request, ended = self._without_recorded(trace_id, request, ended)
            if number := len(list(otlp.spans_of(request))):
                self._buffer.add(trace_id, ended, Batch(request.SerializeToString(), number))

    def _without_recorded(
        self, trace_id: str, request: ExportTraceServiceRequest, ended: list[EndedSpan]
    ) -> tuple[ExportTraceServiceRequest, list[EndedSpan]]:
        """Return the spans of a trace that was taken over without those that a process has stored before."""
        from host_client.telemetry.otlp import select, spans_of

        assert self._delivery is not None
        span_ids = [span.span_id.hex() for span in spans_of(request)]
        recorded = self._delivery.recorded(trace_id, span_ids)
        if not recorded:
            return request, ended
        are_recorded = [span_id in recorded for span_id in span_ids]
        again = select(request, are_recorded)
        self._delivery.offer_again([Batch(again.SerializeToString(), sum(are_recorded))])
        return select(request, [not each for each in are_recorded]), [s for s in ended if s.span_id not in recorded]

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:  # a fault in one observer must not affect the others or the spans
                self._failed(observer)

    def _failed(self, part: Observer | Delivery) -> None:
        self.lose(f"fault of {type(part).__name__}", 1)
        _logger.exception("a part of telemetry failed; the agent goes on")


def _show(span: EndedSpan, replayed: bool, observer: Observer) -> None:
    observer.observe_span(span, replayed=replayed)
