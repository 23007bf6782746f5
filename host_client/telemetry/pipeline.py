"""Takes what sessions tell and hands it on, in a thread of its own.

Spans go to the exporters by one decision a trace, events and spans to the metrics, turns to the ledger.
Nothing here blocks a session or raises into it; what is lost is counted and logged.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent_runner.sanitize import preview

from .sampling import Sampler, SamplingConfig, Verdict

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from agent_runner.protocol import AnyEvent

MAX_QUEUED = 20_000
"""Hand-overs that wait for the thread; one more is dropped and counted. Sessions and results, which costs and
decisions hang on, have as much room again."""

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""What they may hold; the same holds for sessions and results."""

TICK_SECONDS = 5.0
"""How often traces that wait too long are looked for."""

_VITAL = ("session", "result")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a session is for, as the host knows it."""

    session_id: str
    user_id: str | None = None
    tenant_id: str | None = None
    tier: str | None = None


class HandOver(NamedTuple):
    """Something for the thread to do: what it is about, how many it is and how large in bytes."""

    what: str
    work: Callable[[], object]
    number: int = 1
    size: int = 0


class Exporter(Protocol):
    """What any OpenTelemetry ``SpanExporter`` is."""

    def export(self, spans: Sequence[ReadableSpan]) -> object:
        """Send spans."""

    def shutdown(self) -> None:
        """Send what is left."""


class Outbox(Protocol):
    """Where spans go: durable, to every destination. The first four are called from the pipeline's thread alone."""

    def hold(self, trace_id: str, request: bytes, spans: int) -> None:
        """Keep spans of a trace that is not decided: a serialized OTLP request."""

    def release(self, trace_id: str) -> None:
        """The trace is kept: send what was held."""

    def discard(self, trace_id: str) -> None:
        """The trace is dropped: forget what was held."""

    def deliver(self, request: bytes, spans: int) -> None:
        """Send spans of a trace that is kept."""

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

    def observe_span(self, span: ReadableSpan) -> None:
        """A span has ended."""

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
        self._queue: queue.SimpleQueue[HandOver] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = threading.Event()
        self._all_delivered = True

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

    def export(self, spans: Sequence[ReadableSpan], size: int = 0) -> None:
        """Spans have ended; ``size`` is what they came in, in bytes."""
        self._hand_over(HandOver("span", lambda: self._take(spans), len(spans), size))

    def observe(self, event: AnyEvent, who: Who, size: int = 0) -> None:
        """A session's runner told something, in so many bytes."""
        if self._observers:
            what = "result" if event.type == "result" else "event"
            work = lambda: self._each(lambda observer: observer.observe(event, who))  # noqa: E731 - done later
            self._hand_over(HandOver(what, work, 1, size))

    def end(self, trace_ids: Sequence[str], who: Who) -> None:
        """The session has ended, and all its spans were exported."""
        self._hand_over(HandOver("session", lambda: self._end(trace_ids, who)))

    def _hand_over(self, item: HandOver) -> None:
        if self.idle:
            return
        if self._closed.is_set():
            self._lose(f"{item.what}: after shutdown", item.number)
            return
        self._start()
        room = 2 if item.what in _VITAL else 1
        if self._queue.qsize() >= MAX_QUEUED * room or self._queued_bytes + item.size > MAX_QUEUED_BYTES * room:
            self._lose(f"{item.what}: queue full", item.number)
        else:
            self._put(item)

    def _put(self, item: HandOver) -> None:
        with self._counting:
            self._queued_bytes += item.size
        self._queue.put(item)

    def _lose(self, reason: str, count: int) -> None:
        if not self.lost[reason]:
            _logger.warning("telemetry loses some (%s); further losses are counted only", reason)
        self.lost[reason] += count

    # -- the end -----------------------------------------------------------------------------------------

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything so far is delivered; return whether it was, in ``timeout`` seconds."""
        until = time.monotonic() + timeout
        if not self._drain(until):
            return False
        return self._outbox is None or self._outbox.flush(max(0.0, until - time.monotonic()))

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Deliver what can be delivered in ``timeout`` seconds and end; return whether nothing is left. Once is enough.

        What is left in a spool directory is sent by the next process that uses it.
        """
        if self._closed.is_set():
            return self._all_delivered
        until = time.monotonic() + timeout
        if self._thread is not None:
            self._put(HandOver("session", self._conclude))
        drained = self._drain(until)
        self._closed.set()
        self._lose_what_is_queued()
        parts = (*self._observers, *([self._outbox] if self._outbox is not None else []))
        ended = [part.close(max(0.1, until - time.monotonic())) for part in parts]
        self._all_delivered = drained and all(ended)
        return self._all_delivered

    def _drain(self, until: float) -> bool:
        """Wait for the thread to have done all that was handed over."""
        if self._thread is None or self._closed.is_set():
            return True
        done = threading.Event()
        self._put(HandOver("flush", done.set, 0))
        return done.wait(max(0.0, until - time.monotonic()))

    def _lose_what_is_queued(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if item.number:
                    self._lose(f"{item.what}: shutdown", item.number)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return, by destination, how many spans were exported, retried, spooled, and dropped by reason."""
        counts = {name: dict(of) for name, of in self._outbox.counts().items()} if self._outbox is not None else {}
        if self.lost:
            counts["pipeline"] = {f"dropped: {reason}": count for reason, count in self.lost.items()}
        return counts

    # -- the thread ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sandspan-telemetry", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        checked = time.monotonic()
        while not self._closed.is_set():
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=TICK_SECONDS)
                with self._counting:
                    self._queued_bytes -= item.size
                self._guarded(item)
            if time.monotonic() - checked > TICK_SECONDS:
                checked = time.monotonic()
                self._guarded(HandOver("session", self._decide_overdue))

    def _guarded(self, item: HandOver) -> None:
        try:
            item.work()
        except Exception:  # the thread serves every session: a fault of one hand-over ends that one only
            self._lose("fault of the pipeline", item.number)
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
        for span in spans:
            self._each(lambda observer, span=span: observer.observe_span(span))
        if self._outbox is None:
            return
        for trace_id, of_trace in groupby(spans, key=_trace_id):
            self._send(trace_id, list(of_trace), self._outbox)

    def _send(self, trace_id: str, spans: list[ReadableSpan], outbox: Outbox) -> None:
        from .encoding import encode  # OpenTelemetry: not with telemetry off

        if self._sanitize is not None:
            spans = [self._sanitize(span) for span in spans]
        request, _ = encode(spans)
        verdict = self._sampler.observe(trace_id, spans, len(request))
        self._follow(trace_id, verdict)
        if verdict is Verdict.KEEP:
            outbox.deliver(request, len(spans))
        elif verdict is Verdict.HOLD:
            self._held.add(trace_id)
            outbox.hold(trace_id, request, len(spans))
            if self._sampler.is_full:
                self._decide_overdue()

    def _follow(self, trace_id: str, verdict: Verdict) -> None:
        """Do with what was held as was decided."""
        if self._outbox is None or verdict is Verdict.HOLD or trace_id not in self._held:
            return
        self._held.discard(trace_id)
        if verdict is Verdict.KEEP:
            self._outbox.release(trace_id)
        else:
            self._outbox.discard(trace_id)

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:  # one that fails takes nothing from the others, or from the spans
                self._lose(f"fault of {type(observer).__name__}", 1)
                _logger.exception("telemetry failed; the agent goes on")


def _trace_id(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context else ""
