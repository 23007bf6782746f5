"""Give the spans of the processes that tools start their place below the tool calls of the run. No I/O.

The CLI gives each process the context of its own span for the call. That span is not passed on, as the run has one for
the same call: its id, by which processes name their parent, is replaced by the id of the run's span. The CLI exports a
span when it has ended, so a process's spans wait for that of their call, and children for their parents.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from ._callers import Caller, comparable
from ._foreign_spans import ForeignSpan, set_common, text_of
from ._state import ToolCall
from .contract.spans import Span, Value

MAX_SPANS = 20_000
"""Maximum number of spans of processes in one run; further ones are counted and left out."""

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Maximum bytes of the spans that wait for their parent; beyond it all are given the place that is likely."""

SETTLE_NS = 5 * 10**9
"""Nanoseconds after the end of a call at which its processes' spans no longer wait for a parent."""

_SETTLE_EVERY_NS = 10**9
_SPANS_OF_A_REQUEST = 64
_BYTES_OF_A_REQUEST = 512 * 1024
_MAX_CALLS = 2_000
"""Maximum number of calls whose spans are kept for what their processes export later."""

_MAX_RECENT = 200
"""Maximum number of turns, and of calls, among which that of a process without a known parent is searched."""

_MAX_STAND_INS = 100_000
_LAG_NS = 10**9
"""Nanoseconds that a call may have run before the run opened its span."""

_STARTS_PROCESSES = ("Bash", "Monitor", "mcp__")
"""Tools, or prefixes of their names, whose calls start processes."""

Send = Callable[[bytes, int], None]
"""Sends a serialized ``ExportTraceServiceRequest`` with a number of spans."""


@dataclass(slots=True)
class _Group:
    """Spans that wait for the same parent, and what is known of the process that sent the first of them."""

    caller_id: bytes | None
    """The id in the process's TRACEPARENT."""
    likely: Span | None
    """The span of the run that is likely the one above them."""
    spans: list[ForeignSpan] = field(default_factory=list[ForeignSpan])


@dataclass(slots=True)
class _Call:
    span: Span
    name: str
    command: str

    def runs_at(self, time: int, lag: int = 0) -> bool:
        """Return whether the call runs at a time; its start is noted up to ``lag`` nanoseconds late."""
        return self.span.start - lag <= time and (self.span.end is None or time <= self.span.end)


class ProcessSpans:
    """Places the spans of processes and sends them. The run reports its turns and calls.

    ``common`` are the attributes of every span of the run, which changes them. ``withheld`` are names of attributes
    that spans of processes may not have.
    """

    def __init__(
        self, common: Mapping[str, Value], withheld: Collection[str], send: Send, clock: Callable[[], int]
    ) -> None:
        self.left_out = 0
        """Number of spans beyond `MAX_SPANS`."""
        self._common = common
        self._withheld = withheld
        self._send = send
        self._clock = clock
        self._turns: deque[Span] = deque(maxlen=_MAX_RECENT)
        self._calls: OrderedDict[str, _Call] = OrderedDict()
        self._sessions: set[str] = set()
        """The session ids that the run's CLI has had."""
        self._own_ids: set[bytes] = set()
        self._stand_ins: dict[bytes, Span] = {}
        """The run's spans by the ids of the CLI's spans for the same operations."""
        self._placed: dict[bytes, Span] = {}
        """The run's spans by the ids of the processes' spans that are below them."""
        self._waiting: dict[bytes, _Group] = {}
        """Spans by the ids of the parents that they wait for."""
        self._waiting_ids: set[bytes] = set()
        self._waiting_bytes = 0
        self._settled_at = 0
        self._ready: list[ForeignSpan] = []

    # -- what the run reports ---------------------------------------------------------------------

    def begin_turn(self, span: Span) -> None:
        """Note the span of a turn that has begun."""
        self._turns.append(span)
        self._own_ids.add(bytes.fromhex(span.span_id))

    def begin_call(self, tool_id: str, call: ToolCall) -> None:
        """Note a tool call that has begun."""
        command = call.input.get("command")
        shown = comparable(command) if isinstance(command, str) else ""
        self._calls[tool_id] = _Call(call.span, call.name, shown)
        self._own_ids.add(bytes.fromhex(call.span.span_id))
        self._sessions.add(str(self._common.get("gen_ai.conversation.id")))
        if len(self._calls) > _MAX_CALLS:
            self._calls.popitem(last=False)

    # -- what processes send ----------------------------------------------------------------------

    def lacks_parents(self, spans: Iterable[ForeignSpan]) -> bool:
        """Return whether the parent of any of these spans is not known, so that the process that sent it can help."""
        parents = (foreign.span.parent_span_id for foreign in spans if not self._is_merged(foreign))
        return any(parent not in self._stand_ins and parent not in self._placed for parent in parents)

    def receive(self, spans: Iterable[ForeignSpan], caller: Caller | None = None) -> None:
        """Take the spans of a request of the CLI or of another process, and send those whose place is known now."""
        for foreign in spans:
            if self._is_merged(foreign):
                self._note(foreign.span)
            else:
                self._take(foreign, caller)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._settle(everything=True)
        elif self._clock() - self._settled_at > _SETTLE_EVERY_NS:
            self._settle(everything=False)
        self._send_ready()

    def finish(self) -> None:
        """Send all spans that wait, because no more spans will come."""
        self._settle(everything=True)
        self._send_ready()

    def _is_merged(self, foreign: ForeignSpan) -> bool:
        """Return whether a span is one of the run's own CLI, and not of a CLI that a tool started."""
        return bool(foreign.cli_session) and (
            foreign.cli_session in self._sessions or foreign.cli_session == self._common.get("gen_ai.conversation.id")
        )

    def _note(self, span: OtlpSpan) -> None:
        """Note which span of the run stands in for a span of the CLI, and place the spans that wait for it."""
        call = self._calls.get(text_of(span, "gen_ai.tool.call.id"))
        stand_in = call.span if call is not None else self._turn_at(span.start_time_unix_nano)
        if stand_in is None or span.span_id in self._stand_ins or len(self._stand_ins) >= _MAX_STAND_INS:
            return
        self._stand_ins[span.span_id] = stand_in
        for foreign in self._no_longer_waiting(span.span_id):
            self._place(foreign, stand_in, directly=True)

    def _take(self, foreign: ForeignSpan, caller: Caller | None) -> None:
        span = foreign.span
        if span.span_id in self._placed or span.span_id in self._waiting_ids or span.span_id in self._own_ids:
            return  # a process repeats spans if it has not got the answer
        if len(self._placed) + len(self._waiting_ids) >= MAX_SPANS:
            self.left_out += 1
            return
        if not span.parent_span_id and caller is not None and caller.span_id is not None:
            span.parent_span_id = caller.span_id  # the process ignores its TRACEPARENT
        parent = span.parent_span_id
        if (stand_in := self._stand_ins.get(parent)) is not None:
            self._place(foreign, stand_in, directly=True)
        elif (run_span := self._placed.get(parent)) is not None:
            self._place(foreign, run_span, directly=False)
        elif parent:
            self._wait(foreign, caller)
        else:
            self._place(foreign, self._likely_parent(span, caller), directly=True)

    def _wait(self, foreign: ForeignSpan, caller: Caller | None) -> None:
        """Keep a span until its parent is known."""
        parent = foreign.span.parent_span_id
        if (group := self._waiting.get(parent)) is None:
            caller_id = caller.span_id if caller is not None else None
            group = self._waiting[parent] = _Group(caller_id, self._likely_parent(foreign.span, caller))
        group.spans.append(foreign)
        self._waiting_ids.add(foreign.span.span_id)
        self._waiting_bytes += _size(foreign)

    def _no_longer_waiting(self, parent: bytes) -> list[ForeignSpan]:
        """Return the spans that waited for a parent."""
        group = self._waiting.pop(parent, None)
        if group is None:
            return []
        for foreign in group.spans:
            self._waiting_ids.discard(foreign.span.span_id)
            self._waiting_bytes -= _size(foreign)
        return group.spans

    # -- places -----------------------------------------------------------------------------------

    def _place(self, foreign: ForeignSpan, run_span: Span | None, *, directly: bool) -> None:
        """Give a span, and those that wait for it, their place below a span of the run: directly, or deeper."""
        if run_span is None:  # nothing of the run has begun
            self.left_out += 1
            return
        todo = [(foreign, directly)]
        while todo:
            foreign, directly = todo.pop()
            span = foreign.span
            todo += [(child, False) for child in self._no_longer_waiting(span.span_id)]
            span.trace_id, span.trace_state = bytes.fromhex(run_span.trace_id), run_span.tracestate
            if directly:
                span.parent_span_id = bytes.fromhex(run_span.span_id)
            self._placed[span.span_id] = run_span
            self._ready.append(foreign)

    def _settle(self, *, everything: bool) -> None:
        """Place spans whose parent is not expected any more, or everything, where they are likely to belong."""
        self._settled_at = self._clock()
        for parent in [parent for parent in self._waiting if parent not in self._waiting_ids]:
            group = self._waiting[parent]
            run_span = self._stand_ins.get(group.caller_id or b"") or group.likely
            if everything or (run_span is not None and self._is_long_over(run_span)):
                for foreign in self._no_longer_waiting(parent):
                    self._place(foreign, run_span, directly=True)
        while everything and self._waiting:  # spans that name each other as parents
            parent, group = next(iter(self._waiting.items()))
            for foreign in self._no_longer_waiting(parent):
                self._place(foreign, group.likely, directly=True)

    def _is_long_over(self, run_span: Span) -> bool:
        return run_span.end is not None and self._settled_at - run_span.end > SETTLE_NS

    def _likely_parent(self, span: OtlpSpan, caller: Caller | None) -> Span | None:
        """Return the span of the call whose command the process's command lines show, or of one that ran then."""
        if caller is not None:
            running = [call for call in self._recent_calls() if call.span.end is None and caller.runs(call.command)]
            if running:
                return max(running, key=lambda call: len(call.command)).span
        return self._call_at(span.start_time_unix_nano)

    def _call_at(self, time: int) -> Span | None:
        """Return the call that began last of those that ran at a time, or else the turn."""
        for lag in (0, _LAG_NS):
            calls = [call for call in self._recent_calls() if call.runs_at(time, lag)]
            calls = [call for call in calls if call.name.startswith(_STARTS_PROCESSES)] or calls
            if calls:
                return max(calls, key=lambda call: call.span.start).span
        return self._turn_at(time)

    def _recent_calls(self) -> Iterable[_Call]:
        return islice(reversed(self._calls.values()), _MAX_RECENT)

    def _turn_at(self, time: int) -> Span | None:
        before = [turn for turn in self._turns if turn.start <= time]
        return before[-1] if before else self._turns[0] if self._turns else None

    # -- sending ----------------------------------------------------------------------------------

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, []
        batch, size = list[ForeignSpan](), 0
        for foreign in ready:
            set_common(foreign.span, self._common, self._withheld)
            batch.append(foreign)
            size += _size(foreign)
            if len(batch) == _SPANS_OF_A_REQUEST or size >= _BYTES_OF_A_REQUEST:
                self._send_batch(batch)
                batch, size = [], 0
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch: list[ForeignSpan]) -> None:
        request = ExportTraceServiceRequest()
        last: ForeignSpan | None = None
        for foreign in batch:
            if last is None or foreign.resource is not last.resource:
                request.resource_spans.add(resource=foreign.resource)
            of_resource = request.resource_spans[-1]
            if not of_resource.scope_spans or last is None or foreign.scope is not last.scope:
                of_resource.scope_spans.add(scope=foreign.scope)
            of_resource.scope_spans[-1].spans.append(foreign.span)
            last = foreign
        self._send(request.SerializeToString(), len(batch))


def _size(foreign: ForeignSpan) -> int:
    return foreign.span.ByteSize() + foreign.resource.ByteSize()
