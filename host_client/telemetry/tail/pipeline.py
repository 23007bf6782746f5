"""The pipeline: takes events and spans from sessions, and hands them on in a thread of its own.

Spans go to the destinations by one decision for each trace; events and spans go to the observers, which are the metrics
and the ledger. No call blocks a session or raises into it. Losses are counted and logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent_runner.contract.protocol import Result
from agent_runner.contract.sanitize import preview
from host_client.telemetry.batch import Batch, EndedSpan
from host_client.telemetry.calls import ToolCalls

from ._buffer import TraceBuffer
from .sampling import Sampler, SamplingConfig

if TYPE_CHECKING:
    from agent_runner.contract.protocol import AnyEvent
    from host_client.telemetry.export.content import ContentFilter
    from host_client.telemetry.export.delivery import Delivery

MAX_QUEUED = 20_000
"""Limit of items that wait for the thread; one more is dropped and counted."""

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Limit of the bytes in them."""

TICK_SECONDS = 1.0
"""How often the thread looks for events, which do not wake it, and for traces that have waited too long."""

_VITAL = ("session", "result")
"""Items that costs and decisions depend on: their limits are twice as high."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Who:
    """The user and tenant that a session is for, and the model and tools that the host asked for by name."""

    session_id: str
    user_id: str | None = None
    tenant_id: str | None = None
    tier: str | None = None
    model: str | None = None
    tools: tuple[str, ...] = ()


class HandOver(NamedTuple):
    """Work for the thread: what it is about, how many spans or events it is, and their size in bytes."""

    what: str
    work: Callable[[], object]
    number: int = 1
    size: int = 0


class Observer(Protocol):
    """Sees all events and spans, of kept and of dropped traces: the metrics, the ledger. Called from one thread.

    ``replayed`` says that a process that died has seen the same before: take note of it, but do not count it again.
    Spans come as `EndedSpan`, a frozen view with ``name``, ``attributes`` (a dict), ``parent_span_id`` (hex),
    ``start_time``, ``end_time`` (nanoseconds since the epoch) and ``is_error``.
    """

    def begin(self, who: Who, calls: ToolCalls) -> None:
        """Take note that a session begins. Its trace feeds ``calls``, before `observe` is called for an event."""

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Look at an event of a session."""

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Look at a span that has ended."""

    def end(self, who: Who) -> None:
        """Take note that a session has ended."""

    def close(self, timeout: float) -> bool:
        """Write what is left; return whether all was written."""
        ...


class Telemetry:
    """The telemetry of a process, which sessions hand their events and spans to.

    `initialize_telemetry` makes one; a bare ``Telemetry()`` takes everything and sends it nowhere. With ``enabled``
    False no OpenTelemetry module is imported.
    """

    def __init__(
        self,
        delivery: Delivery | None = None,
        observers: Sequence[Observer] = (),
        *,
        sampling: SamplingConfig | None = None,
        content: ContentFilter | None = None,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self.preview: Callable[[str], str] = preview if content is None else content.preview
        """Returns the part of a prompt that may be noted on a sandbox."""
        self.lost: Counter[str] = Counter()
        """Spans and events that were lost before the delivery, by reason."""
        self._delivery = delivery
        self._observers = tuple(observers)
        self._content = content
        sampler = Sampler(sampling or SamplingConfig())
        self._buffer = TraceBuffer(delivery, sampler, self._attempt) if delivery is not None else None
        self._lock = threading.Lock()
        self._waiting: list[HandOver] = []
        self._undone = self._undone_bytes = 0
        """Items, and bytes, that wait or that the thread is working on."""
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        """Set while the lock is held: no item may begin to wait after it."""
        self._ending = threading.Lock()
        self._reported = 0
        """Losses that `flush` or `shutdown` has reported."""
        self._all_delivered = False

    # -- called by sessions; never blocks, never raises ------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether there is neither a destination nor an observer."""
        return not self.enabled or (self._delivery is None and not self._observers)

    def begin(self, trace_id: str, who: Who, calls: ToolCalls | None = None) -> None:
        """Begin a session in a trace; the caller feeds ``calls`` with its events."""
        self._hand_over(HandOver("session", partial(self._begin, trace_id, who, calls or ToolCalls())))

    def join(self, trace_id: str, who: Who) -> None:
        """Take note that the session has spans in a further trace."""
        self._hand_over(HandOver("session", partial(self._join, trace_id, who)))

    def export(self, spans: Batch, *, replayed: bool = False) -> None:
        """Take ended spans. A process that died may have exported ``replayed`` ones: they go out again."""
        self._hand_over(HandOver("span", partial(self._export, spans, replayed), spans.spans, len(spans.body)))

    def observe(self, event: AnyEvent, who: Who, size: int = 0, *, replayed: bool = False) -> None:
        """Take an event of so many bytes. A process that died has observed ``replayed`` ones."""
        if self._observers:
            what = "result" if isinstance(event, Result) and not replayed else "event"
            self._hand_over(HandOver(what, partial(self._observe, event, who, replayed), 1, size))

    def end(self, trace_ids: Sequence[str], who: Who) -> None:
        """End a session, or leave it to another process; all its spans were exported."""
        self._hand_over(HandOver("session", partial(self._end, trace_ids, who)))

    def _hand_over(self, item: HandOver) -> None:
        """Queue an item, or count it as lost where there is no room."""
        if self.idle:
            return
        room = 2 if item.what in _VITAL else 1
        with self._lock:
            is_full = self._undone >= MAX_QUEUED * room or self._undone_bytes + item.size > MAX_QUEUED_BYTES * room
            why = "after shutdown" if self._is_closed else "queue full" if is_full else None
            if why is None:
                self._queue(item)
        if why is not None:
            self.lose(f"{item.what}: {why}", item.number)
        elif item.what != "event":  # an event is only counted, and waking the thread costs more than that
            self._awake.set()

    def _queue(self, item: HandOver) -> None:
        """Let an item wait for the thread, which begins with the first one; the lock is held."""
        self._waiting.append(item)
        self._undone += 1
        self._undone_bytes += item.size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandspan-telemetry", daemon=True)
            self._thread.start()

    def lose(self, reason: str, count: int) -> None:
        """Count lost spans or events; the first of a reason is logged."""
        with self._lock:
            is_first = not self.lost[reason]
            self.lost[reason] += count
        if is_first:
            _logger.warning("telemetry loses some (%s); further losses are counted only", reason)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many spans were exported, retried, spooled, and dropped by reason, for each destination."""
        delivered = self._delivery.counts() if self._delivery is not None else {}
        counts = {name: of.by_outcome() for name, of in delivered.items()}
        if self._content is not None and self._content.withheld:
            counts["sanitize_prompt"] = {"withheld": self._content.withheld}
        with self._lock:
            lost = {f"dropped: {reason}": count for reason, count in self.lost.items()}
        return counts | ({"pipeline": lost} if lost else {})

    # -- the end -----------------------------------------------------------------------------------------

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything so far is delivered; return whether it was, within ``timeout`` seconds.

        Also False if anything was lost since the last call. Spans of undecided traces are not waited for: they are
        held, and count as neither delivered nor lost.
        """
        until = time.monotonic() + timeout
        drained = self._drain(until)
        delivered = drained and (self._delivery is None or self._delivery.flush(max(0.0, until - time.monotonic())))
        return self._lost_nothing() and delivered

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Decide the undecided traces, deliver what ``timeout`` seconds allow, and end. Further calls do nothing.

        Returns whether all was delivered and nothing lost since the last `flush`; further calls return the same. The
        next process that uses the spool directory sends the spans that are left in it.
        """
        if not self._ending.acquire(timeout=timeout):  # another thread is ending it
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
            left, self._waiting = self._waiting, []
        self._lose_all(left)
        self._awake.set()
        closed = self._close_parts(until)
        return self._lost_nothing() and closed and drained

    def _close_parts(self, until: float) -> bool:
        """Close observers and delivery at the same time, so that a slow one takes no time from the others."""
        parts = (*self._observers, *([self._delivery] if self._delivery is not None else []))
        closed: list[bool] = []

        def close(part: Observer | Delivery) -> None:
            try:
                closed.append(part.close(max(0.1, until - time.monotonic())))
            except Exception:  # a part that fails keeps no other from its end
                self._failed(part)

        threads = [threading.Thread(target=close, args=(part,), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(closed) == len(parts) and all(closed)

    def _drain(self, until: float) -> bool:
        """Wait until the thread has done everything that was handed over so far."""
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
        """Queue an item even if the queue is full; without a thread there is nothing for it to do."""
        with self._lock:
            if self._thread is not None:
                self._queue(item)
        self._awake.set()

    def _lost_nothing(self) -> bool:
        """Return whether nothing was lost since this was last asked."""
        with self._lock:
            before, self._reported = self._reported, sum(self.lost.values())
            return before == self._reported

    def _lose_all(self, items: Sequence[HandOver]) -> None:
        for item in items:
            if item.number:
                self.lose(f"{item.what}: shutdown", item.number)

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
        """Do all the work, then write the spans that it brought."""
        for number, item in enumerate(items):
            if self._is_closed:
                self._lose_all(items[number:])
                break
            self._attempt(item.work, item.number)
        if self._buffer is not None:
            self._buffer.write()
        with self._lock:
            self._undone -= len(items)
            self._undone_bytes -= sum(item.size for item in items)

    def _attempt(self, work: Callable[[], object], number: int) -> None:
        try:
            work()
        except Exception:  # the thread serves every session: a fault in one item must end that item only
            self.lose("fault of the pipeline", number)
            _logger.exception("telemetry failed; the agent goes on")

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

    def _observe(self, event: AnyEvent, who: Who, replayed: bool) -> None:
        self._each(lambda observer: observer.observe(event, who, replayed=replayed))

    def _export(self, spans: Batch, replayed: bool) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        from host_client.telemetry import otlp  # OpenTelemetry: not with telemetry off

        for trace_id, request in otlp.by_trace(ExportTraceServiceRequest.FromString(spans.body)).items():
            ended = otlp.ended_spans(request)
            for span in ended:
                self._each(partial(_show, span, replayed))
            if self._buffer is None:
                continue
            if replayed:
                # The next process that finds the dead process's spool sends the spans that were held there.
                self._buffer.keep(trace_id, "taken over")
            if self._content is not None:
                for message in otlp.spans_of(request):
                    self._content.clean(message)
            self._buffer.add(trace_id, ended, Batch(request.SerializeToString(), len(ended)))

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:  # an observer that fails takes nothing from the others, or from the spans
                self._failed(observer)

    def _failed(self, part: Observer | Delivery) -> None:
        self.lose(f"fault of {type(part).__name__}", 1)
        _logger.exception("telemetry failed; the agent goes on")


def _show(span: EndedSpan, replayed: bool, observer: Observer) -> None:
    observer.observe_span(span, replayed=replayed)
