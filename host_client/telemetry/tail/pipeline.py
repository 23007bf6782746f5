"""Takes what sessions tell and hands it on, in a thread of its own.

Spans go to the exporters by one decision a trace, events and spans to the metrics, turns to the ledger.
Nothing here blocks a session or raises into it; what is lost is counted and logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent_runner.contract.protocol import Result
from agent_runner.contract.sanitize import preview
from host_client.telemetry.batch import Batch, joined, spans_of

from .sampling import EndedSpan, Sampler, SamplingConfig, Verdict

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from agent_runner.contract.protocol import AnyEvent
    from host_client.telemetry.relay.relayed import Relayed

MAX_QUEUED = 20_000
"""Hand-overs that wait for the thread; one more is dropped and counted. Sessions and results, which costs and
decisions hang on, have as much room again."""

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""What they may hold; the same holds for sessions and results."""

TICK_SECONDS = 1.0
"""How often the thread looks for what woke nobody: events that are only counted, traces that wait too long."""

MAX_UNWRITTEN = 512
"""Spans that the outbox is given at once, where more than that wait."""

_VITAL = ("session", "result")
_COUNTED = ("event",)
"""What may wait for a tick: to wake a thread costs more than to count."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a session is for, and the model and tools that it asks for by name, as the host knows it."""

    session_id: str
    user_id: str | None = None
    tenant_id: str | None = None
    tier: str | None = None
    model: str | None = None
    tools: tuple[str, ...] = ()


class HandOver(NamedTuple):
    """Something for the thread to do: what it is about, how many it is and how large in bytes."""

    what: str
    work: Callable[[], object]
    number: int = 1
    size: int = 0


Told = tuple["AnyEvent", Who, int]
"""What a session's runner told, whose session it is, and the size in bytes."""


class Exporter(Protocol):
    """What any OpenTelemetry ``SpanExporter`` is."""

    def export(self, spans: Sequence[ReadableSpan]) -> object:
        """Send spans."""

    def shutdown(self) -> None:
        """Send what is left."""


class Outbox(Protocol):
    """Where spans go: durable, to every destination. The first four are called from the pipeline's thread alone."""

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        """Keep spans of a trace that is not decided: serialized OTLP requests."""

    def release(self, trace_id: str) -> None:
        """The trace is kept: send what was held."""

    def discard(self, trace_id: str) -> None:
        """The trace is dropped: forget what was held."""

    def offer(self, batches: Sequence[Batch]) -> None:
        """Send spans of traces that are kept."""

    def flush(self, timeout: float) -> bool:
        """Wait for everything to be delivered; return whether it was."""
        ...

    def close(self, timeout: float) -> bool:
        """Deliver what can be delivered in time, and end; return whether nothing is left."""
        ...

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return, by destination: exported, retried, spooled, and dropped with a reason."""
        ...


class Observer(Protocol):
    """What looks at everything, sampled or not: the metrics, the ledger."""

    def begin(self, who: Who) -> None:
        """A session begins."""

    def observe(self, event: AnyEvent, who: Who) -> None:
        """A session's runner told something."""

    def recall(self, event: AnyEvent, who: Who) -> None:
        """What a session's runner told another process, which counted it: know it, and count nothing."""

    def observe_span(self, span: EndedSpan) -> None:
        """A span has ended."""

    def recall_span(self, span: EndedSpan) -> None:
        """A span of a sandbox that another process has measured: know it, and measure nothing."""

    def end(self, who: Who) -> None:
        """A session has ended."""

    def close(self, timeout: float) -> bool:
        """Write what is left; return whether all was written."""
        ...


class Telemetry:
    """What sessions hand everything to. ``enabled`` False means that no OpenTelemetry module is imported.

    Made by `initialize_telemetry`; the bare ``Telemetry()`` takes everything and sends it nowhere.
    """

    def __init__(
        self,
        outbox: Outbox | None = None,
        observers: Sequence[Observer] = (),
        *,
        sampling: SamplingConfig | None = None,
        sanitize: Callable[[ReadableSpan], ReadableSpan] | None = None,
        preview: Callable[[str], str] = preview,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self.preview = preview
        """What of a prompt may be noted on a sandbox."""
        self.lost: Counter[str] = Counter()
        """Spans and events that got no further than here, by reason."""
        self._outbox = outbox
        self._observers = tuple(observers)
        self._sanitize = sanitize
        self._sampler = Sampler(sampling or SamplingConfig())
        self._held: set[str] = set()
        self._due: list[Batch] = []
        self._to_hold: dict[str, list[Batch]] = {}
        self._unwritten = 0
        """Spans that are due or to be held by trace, and are written together: a transaction costs as much as several
        spans."""
        self._lock = threading.Lock()
        self._waiting: list[HandOver | Told] = []
        self._undone = self._undone_bytes = 0
        """What waits, and what the thread is about."""
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        """Set while the lock is held, as nothing may begin to wait after it."""
        self._ending = threading.Lock()
        self._told_of = 0
        """How much was lost when that was last told."""
        self._all_delivered = False

    # -- what sessions call; never blocks, never raises ------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether there is nobody to tell anything."""
        return not self.enabled or (self._outbox is None and not self._observers)

    def begin(self, trace_id: str, who: Who) -> None:
        """A session begins, in this trace."""
        self._hand_over(HandOver("session", lambda: self._begin(trace_id, who)))

    def join(self, trace_id: str, who: Who) -> None:
        """The session has spans in a further trace."""
        self._hand_over(HandOver("session", lambda: self._join(trace_id, who)))

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        """Spans of the host's own have ended."""
        self._hand_over(HandOver("span", lambda: self._take(spans), len(spans)))

    def relay(self, spans: Relayed, size: int = 0) -> None:
        """Spans of a sandbox have ended; ``size`` is what they came in, in bytes."""
        self._hand_over(HandOver("span", lambda: self._take_relayed(spans), len(spans), size))

    def export_again(self, spans: Sequence[ReadableSpan]) -> None:
        """Spans have ended that another process may have exported, and has measured."""
        self._hand_over(HandOver("span", lambda: self._take_again(spans), len(spans)))

    def relay_again(self, spans: Relayed, size: int = 0) -> None:
        """Spans of a sandbox that another process may have exported, and has measured."""
        self._hand_over(HandOver("span", lambda: self._take_relayed_again(spans), len(spans), size))

    def observe(self, event: AnyEvent, who: Who, size: int = 0) -> None:
        """A session's runner told something, in so many bytes."""
        if not self._observers or not self.enabled:
            return
        if isinstance(event, Result):
            self._hand_over(HandOver("result", partial(self._observe, event, who), 1, size))
        elif not self._hand_over_event(event, who, size):
            self._hand_over(HandOver("event", partial(self._observe, event, who), 1, size))

    def recall(self, event: AnyEvent, who: Who, size: int = 0) -> None:
        """A session's runner told this to another process, which observed it."""
        if self._observers:
            self._hand_over(HandOver("event", partial(self._recall, event, who), 1, size))

    def end(self, trace_ids: Sequence[str], who: Who) -> None:
        """The session has ended, or goes on in another process; all its spans were exported."""
        self._hand_over(HandOver("session", lambda: self._end(trace_ids, who)))

    def _hand_over_event(self, event: AnyEvent, who: Who, size: int) -> bool:
        """Let an event wait for the thread, if there is one, and room.

        Most of what comes comes here, one by one and with nothing of this in the processor's cache: no call, no object.
        """
        with self._lock:
            bytes_then = self._undone_bytes + size
            if self._thread is None or self._is_closed or self._undone >= MAX_QUEUED or bytes_then > MAX_QUEUED_BYTES:
                return False
            self._waiting.append((event, who, size))
            self._undone += 1
            self._undone_bytes = bytes_then
        return True

    def _hand_over(self, item: HandOver) -> None:
        """Let an item wait for the thread, where there is room."""
        if self.idle:
            return
        what, _, number, size = item
        room = 2 if what in _VITAL else 1
        with self._lock:
            is_full = self._undone >= MAX_QUEUED * room or self._undone_bytes + size > MAX_QUEUED_BYTES * room
            why = "after shutdown" if self._is_closed else "queue full" if is_full else None
            if why is None:
                self._waiting.append(item)
                self._undone += 1
                self._undone_bytes += size
                if self._thread is None:
                    self._start()
        if why is not None:
            self.lose(f"{what}: {why}", number)
        elif what not in _COUNTED:
            self._wake()

    def _wake(self) -> None:
        if not self._awake.is_set():
            self._awake.set()

    def _put(self, item: HandOver) -> None:
        """Let an item wait for the thread, full or not; there is one."""
        with self._lock:
            self._waiting.append(item)
            self._undone += 1
            self._undone_bytes += item.size
        self._wake()

    def lose(self, reason: str, count: int) -> None:
        """Count spans or events that go no further; the first of a reason is logged."""
        with self._lock:
            is_first = not self.lost[reason]
            self.lost[reason] += count
        if is_first:
            _logger.warning("telemetry loses some (%s); further losses are counted only", reason)

    # -- the end -----------------------------------------------------------------------------------------

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything so far is delivered; return whether it was, in ``timeout`` seconds.

        False too if anything was lost since the last call. Spans of traces that are not decided are not waited for:
        they are held, and count as neither delivered nor lost.
        """
        until = time.monotonic() + timeout
        drained = self._drain(until)
        delivered = drained and (self._outbox is None or self._outbox.flush(max(0.0, until - time.monotonic())))
        return self._lost_nothing() and delivered

    def _lost_nothing(self) -> bool:
        """Return whether nothing was lost since this was last asked."""
        with self._lock:
            told, self._told_of = self._told_of, sum(self.lost.values())
            return told == self._told_of

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Decide what is not decided, deliver what can be delivered in ``timeout`` seconds and end. Once is enough.

        Returns whether all was delivered and nothing lost since the last `flush`; later calls return the same. What is
        left in a spool directory is sent by the next process that uses it.
        """
        if not self._ending.acquire(timeout=timeout):  # another thread is about it
            return False
        try:
            if not self._is_closed:
                self._all_delivered = self._end_all(time.monotonic() + timeout)
            return self._all_delivered
        finally:
            self._ending.release()

    def _end_all(self, until: float) -> bool:
        if self._thread is not None:
            self._put(HandOver("session", self._conclude))
        drained = self._drain(until)
        with self._lock:
            self._is_closed = True
            left, self._waiting = self._waiting, []
        self._lose_what_waits(left)
        self._awake.set()
        closed = self._close_parts(until)
        return self._lost_nothing() and closed and drained

    def _close_parts(self, until: float) -> bool:
        """Close all at once, so that one which takes long takes nothing from the others; return whether all did."""
        parts = (*self._observers, *([self._outbox] if self._outbox is not None else []))
        ended: list[bool] = []

        def close(part: Observer | Outbox) -> None:
            try:
                ended.append(part.close(max(0.1, until - time.monotonic())))
            except Exception:  # one that fails keeps no other from its end
                self._failed(part)

        threads = [threading.Thread(target=close, args=(part,), daemon=True) for part in parts[1:]]
        for thread in threads:
            thread.start()
        for part in parts[:1]:
            close(part)
        for thread in threads:
            thread.join()
        return len(ended) == len(parts) and all(ended)

    def _drain(self, until: float) -> bool:
        """Wait for the thread to have done all that was handed over."""
        if self._thread is None or self._is_closed:
            return True
        done = threading.Event()

        def write() -> None:
            self._write()
            done.set()

        self._put(HandOver("flush", write, 0))
        return done.wait(max(0.0, until - time.monotonic()))

    def _lose_what_waits(self, items: Sequence[HandOver | Told]) -> None:
        for item in items:
            what, number = (item.what, item.number) if isinstance(item, HandOver) else ("event", 1)
            if number:
                self.lose(f"{what}: shutdown", number)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return, by destination, how many spans were exported, retried, spooled, and dropped by reason."""
        counts = {name: dict(of) for name, of in self._outbox.counts().items()} if self._outbox is not None else {}
        with self._lock:
            lost = dict(self.lost)
        if lost:
            counts["pipeline"] = {f"dropped: {reason}": count for reason, count in lost.items()}
        return counts

    # -- the thread ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the thread; the lock is held."""
        self._thread = threading.Thread(target=self._work, name="sandspan-telemetry", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        checked = time.monotonic()
        while not self._is_closed:
            self._awake.wait(TICK_SECONDS)
            self._awake.clear()
            self._do(self._take_all())
            if time.monotonic() - checked > TICK_SECONDS:
                checked = time.monotonic()
                self._guarded(HandOver("session", self._decide_overdue))

    def _take_all(self) -> list[HandOver | Told]:
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def _do(self, items: list[HandOver | Told]) -> None:
        """Do all of it, and write what came of it."""
        size = 0
        for number, item in enumerate(items):
            if self._is_closed:
                self._lose_what_waits(items[number:])
                break
            if isinstance(item, HandOver):
                size += item.size
                self._guarded(item)
            else:
                event, who, bytes_of_it = item
                size += bytes_of_it
                self._observe(event, who)
        self._write()
        with self._lock:
            self._undone -= len(items)
            self._undone_bytes -= size

    def _write(self) -> None:
        """Let the outbox have what was decided to be due or held."""
        if self._outbox is None:
            return
        due, self._due = self._due, []
        to_hold, self._to_hold = self._to_hold, {}
        self._unwritten = 0
        self._held.update(to_hold)
        if due:
            self._guarded(HandOver("span", partial(self._outbox.offer, joined(due)), spans_of(due)))
        for trace_id, batches in to_hold.items():
            self._guarded(HandOver("span", partial(self._outbox.hold, trace_id, joined(batches)), spans_of(batches)))

    def _guarded(self, item: HandOver) -> None:
        try:
            item.work()
        except Exception:  # the thread serves every session: a fault of one hand-over ends that one only
            self.lose("fault of the pipeline", item.number)
            _logger.exception("telemetry failed; the agent goes on")

    def _conclude(self) -> None:
        """No more will come: decide what is left."""
        for trace_id, verdict in self._sampler.conclude():
            self._follow(trace_id, verdict)

    def _begin(self, trace_id: str, who: Who) -> None:
        self._join(trace_id, who)
        self._each(lambda observer: observer.begin(who))

    def _join(self, trace_id: str, who: Who) -> None:
        self._follow(trace_id, self._sampler.begin(trace_id, who.tier))

    def _end(self, trace_ids: Sequence[str], who: Who) -> None:
        self._each(lambda observer: observer.end(who))
        for trace_id in trace_ids:
            self._follow(trace_id, self._sampler.end(trace_id))

    def _decide_overdue(self) -> None:
        for trace_id, verdict in self._sampler.overdue():
            self._follow(trace_id, verdict)

    def _take(self, spans: Sequence[ReadableSpan]) -> None:
        self._show(spans)
        self._pass_on(spans)

    def _take_again(self, spans: Sequence[ReadableSpan]) -> None:
        for trace_id in sorted(set(map(_trace_id, spans))):
            self._keep_whole(trace_id)
        self._pass_on(spans)

    def _keep_whole(self, trace_id: str) -> None:
        """Keep a trace that was taken over: what a dead process held of it is sent, by whichever process finds it."""
        self._follow(trace_id, self._sampler.keep(trace_id, "taken over"))

    def _pass_on(self, spans: Sequence[ReadableSpan]) -> None:
        from host_client.telemetry.otlp import encode  # OpenTelemetry: not with telemetry off

        if self._outbox is None:
            return
        for trace_id, of_trace in groupby(spans, key=_trace_id):
            clean = [self._sanitize(span) if self._sanitize is not None else span for span in of_trace]
            self._settle(trace_id, clean, encode(clean))

    def _take_relayed(self, relayed: Relayed) -> None:
        if self._observers:
            self._show(list(relayed.spans()))
        self._pass_on_relayed(relayed)

    def _take_relayed_again(self, relayed: Relayed) -> None:
        for trace_id in relayed.by_trace():
            self._keep_whole(trace_id)
        for span in relayed.spans() if self._observers else ():
            self._each(lambda observer, span=span: observer.recall_span(span))
        self._pass_on_relayed(relayed)

    def _pass_on_relayed(self, relayed: Relayed) -> None:
        if self._sanitize is not None:
            self._pass_on(relayed.readable())
            return
        if self._outbox is None:
            return
        for trace_id, of_trace in relayed.by_trace().items():
            self._settle(trace_id, of_trace.spans(), Batch(of_trace.encoded(), len(of_trace)))

    def _show(self, spans: Sequence[EndedSpan]) -> None:
        for observer in self._observers:
            for span in spans:
                try:
                    observer.observe_span(span)
                except Exception:  # as in `_each`
                    self._failed(observer)

    def _settle(self, trace_id: str, spans: Iterable[EndedSpan], batch: Batch) -> None:
        """Let spans of one trace go the way of the trace."""
        verdict = self._sampler.observe(trace_id, spans, len(batch.body))
        self._follow(trace_id, verdict)
        if verdict is Verdict.DROP:
            return
        if verdict is Verdict.KEEP:
            self._due.append(batch)
        else:
            self._to_hold.setdefault(trace_id, []).append(batch)
            if self._sampler.is_full:
                self._decide_overdue()
        self._unwritten += batch.spans
        if self._unwritten >= MAX_UNWRITTEN:
            self._write()

    def _follow(self, trace_id: str, verdict: Verdict) -> None:
        """Do with what was held as was decided."""
        if self._outbox is None or verdict is Verdict.HOLD:
            return
        unwritten = self._to_hold.pop(trace_id, [])
        if verdict is Verdict.KEEP:
            self._due += unwritten
        if trace_id in self._held:
            self._held.discard(trace_id)
            (self._outbox.release if verdict is Verdict.KEEP else self._outbox.discard)(trace_id)

    def _observe(self, event: AnyEvent, who: Who) -> None:
        for observer in self._observers:
            try:
                observer.observe(event, who)
            except Exception:  # as in `_each`
                self._failed(observer)

    def _recall(self, event: AnyEvent, who: Who) -> None:
        self._each(lambda observer: observer.recall(event, who))

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:  # one that fails takes nothing from the others, or from the spans
                self._failed(observer)

    def _failed(self, part: Observer | Outbox) -> None:
        self.lose(f"fault of {type(part).__name__}", 1)
        _logger.exception("telemetry failed; the agent goes on")


def _trace_id(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context else ""
