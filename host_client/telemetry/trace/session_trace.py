"""The trace of one session: the host's own spans, the sandbox's, and those that a dead runner left open."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_runner.contract import otlp
from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalResolved,
    CommandResult,
    ErrorType,
    QuestionResolved,
    TelemetryEvent,
    to_json,
)
from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Attributes, Span, Spans, Value
from agent_runner.contract.trace_context import SAMPLED, TraceContext
from host_client.telemetry.batch import Batch
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.relay import clean
from host_client.telemetry.tail.pipeline import Telemetry, Who

from .orphans import Orphans
from .root import Root

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
    from opentelemetry.sdk.trace import ReadableSpan

SERVICE_NAME = "host_client"
MAX_RELAYED = 50_000
"""Maximum number of spans that a session accepts from its sandbox; an agent makes three for each tool call."""

MAX_GIVEN = 1000
"""Maximum number of the host's texts that spans may hold unchanged."""

MAX_KEPT = 10_000
"""Maximum number of spans that `SessionTrace.kept` returns; the destinations get all of them."""

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Maximum size of these spans in bytes."""

OnOwnSpans = Callable[[bytes], None]
"""Called with a serialized OTLP request of spans that the host itself has ended."""

_logger = logging.getLogger(__name__)


class SessionTrace:
    """Open and export the spans of one session: the host's own, and those that its sandbox sends.

    ``common`` are attributes of every span. ``on_own_spans`` is called with the host's spans as they end.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        common: Mapping[str, Value],
        root: Root,
        who: Who,
        on_own_spans: OnOwnSpans | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._who = who
        self._common = dict(common)
        self._on_own_spans = on_own_spans
        self._spans = Spans(common)
        above = TraceContext(root.trace_id, root.parent_span_id or "", tracestate=root.tracestate)
        self._flags = root.flags
        self.root = self._spans.open_root("agent.session", above, {}, root.span_id, start=root.start)
        self.calls = ToolCalls()
        """The session's tool calls, which only this trace feeds."""
        self._orphans = Orphans(common, self.calls)
        self._trace_ids = {self.root.trace_id}
        self._is_taken_over = False
        self._given = {value for value in (*common.values(), self.root.tracestate) if isinstance(value, str) and value}
        self._seen = {self.root.span_id}
        self._seen_of_processes: set[str] = set()
        """The ids of spans that processes of tools have exported. They cannot take the place of Sandspan's own."""
        self._kept: list[Batch] = []
        self._kept_spans = self._kept_bytes = 0
        self.own = b""
        """The host's own ended spans so far, as one serialized OTLP request; without rebuilt spans."""
        telemetry.begin(self.root.trace_id, who, self.calls)

    @property
    def kept(self) -> list[ReadableSpan]:
        """Return the session's ended spans as `ReadableSpan`s, at most `MAX_KEPT`."""
        if not self._kept:
            return []
        from agent_runner.contract.otlp_messages import readable  # not loaded with telemetry off

        return list(islice((span for batch in self._kept for span in readable(batch.body)), MAX_KEPT))

    @property
    def context(self) -> TraceContext:
        """Return the trace context that makes the session's root span the parent of the runner's spans."""
        return TraceContext(self.root.trace_id, self.root.span_id, self._flags, self.root.tracestate)

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """Return the ids of the traces that the session's spans may belong to."""
        return tuple(sorted(self._trace_ids))

    def admit(self, caller: TraceContext) -> None:
        """Accept spans of a caller's trace too: a turn may be part of it."""
        self.tell(caller.tracestate)
        if caller.trace_id not in self._trace_ids:
            self._trace_ids.add(caller.trace_id)
            self._telemetry.join(caller.trace_id, self._who)
            if self._is_taken_over:
                self._telemetry.take_over((caller.trace_id,))

    def take_over(self) -> None:
        """Take note that another process, which died, had this session; before its spans are replayed.

        This waits for the spool, so call it in a thread.
        """
        self._telemetry.adopt()
        self._is_taken_over = True
        self._telemetry.take_over(self.trace_ids)

    def tell(self, text: str | None) -> None:
        """Let spans hold a text unredacted that the host sends to the sandbox, such as an approver's name."""
        if text and len(self._given) < MAX_GIVEN:
            self._given.add(text)

    @contextmanager
    def current(self, span: Span | TraceContext | None = None) -> Generator[None]:
        """Make a span, by default the session's, the parent of spans that instrumented libraries emit meanwhile.

        The E2B SDK emits spans of its own if the process has a tracer provider. A span of a trace that is not the
        session's is replaced by the session's.
        """
        if not self._telemetry.enabled:
            yield
            return
        from opentelemetry import context, trace  # not loaded with telemetry off

        parent = span if span is not None and span.trace_id in self._trace_ids else self.root
        span_context = trace.SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=False,
            trace_flags=trace.TraceFlags(self._flags | SAMPLED),  # the decision to drop a trace comes later
        )
        token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(span_context), context.Context()))
        try:
            yield
        finally:
            context.detach(token)

    @contextmanager
    def span(self, name: str) -> Generator[Span]:
        """Open a span below the session's for the block; an exception marks it as failed."""
        span = self._spans.open_child(name, self.root, {})
        self._seen.add(span.span_id)
        try:
            with self.current(span):
                yield span
        except BaseException as error:
            span.fail(getattr(error, "error_type", "cancelled"), str(error)[:200])
            raise
        finally:
            self._spans.close(span)
            self._export_ended()

    # -- the sandbox's events and spans ------------------------------------------------------------------

    def observe(self, event: AnyEvent, size: int = 0, *, replayed: bool = False) -> str | None:
        """Process an event of ``size`` bytes; return a description of what is wrong with it, None if nothing is.

        ``replayed`` events were observed before by another process, which died: their spans are exported again with
        the same ids, and nothing is counted again.
        """
        event = self._with_clean_decider(event)
        self.calls.observe(event)
        self._telemetry.observe(event, self._who, size, replayed=replayed)
        if not self._telemetry.enabled:
            return None
        if isinstance(event, CommandResult):
            self._note_command(event)
        if event.trace_id in self._trace_ids:
            self._orphans.observe(event)
        return self._relay(event.data.otlp, replayed) if isinstance(event, TelemetryEvent) else None

    def _note_command(self, event: CommandResult) -> None:
        """Add a command that changed the agent, or was refused, to the session's span."""
        data = event.data
        if str(data.command.get("type")).startswith("get_"):  # a question changes nothing
            return
        fields = {name: value for name, value in data.command.items() if name not in ("type", "requested_by")}
        texts = {
            "command.type": data.command.get("type"),
            "command.arguments": to_json(fields).decode() if fields else None,
            "command.requested_by": data.command.get("requested_by"),
            "command.error": data.error,
        }
        about: Attributes = {
            name: text if text in self._given else brief(text) for name, text in texts.items() if isinstance(text, str)
        }
        self.root.add_event("command", int(event.ts * 1e9), about)

    def _with_clean_decider(self, event: AnyEvent) -> AnyEvent:
        """Return the event with ``decided_by`` redacted, unless the host itself sent that name to the sandbox."""
        if not isinstance(event, ApprovalResolved | QuestionResolved):
            return event
        by = event.data.decided_by
        if by is None or by in self._given:
            return event
        return replace(event, data=replace(event.data, decided_by=brief(by)))

    def _relay(self, payload: str, replayed: bool) -> str | None:
        if len(self._seen) >= MAX_RELAYED:
            return f"the session has sent {MAX_RELAYED} spans; further ones are not accepted"
        from host_client.telemetry.relay.decoding import decode  # not loaded with telemetry off

        try:
            request = decode(payload, trace_ids=self._trace_ids, common=self._common, given=self._given)
        except ValueError as error:
            return str(error)
        left_out = self._export_new(request, replayed)
        if left_out and len(self._seen_of_processes) >= MAX_RELAYED:
            return f"the processes of tools have sent {MAX_RELAYED} spans; further ones are not accepted"
        return f"spans with the id of an earlier span are left out: {left_out}" if left_out else None

    def _export_new(self, request: ExportTraceServiceRequest, replayed: bool) -> int:
        """Export the spans with new ids; return the number of the others."""
        from host_client.telemetry.otlp import are_own, select, spans_of  # not loaded with telemetry off

        spans = list(zip(spans_of(request), are_own(request), strict=True))
        are_new = [
            _is_new(span.span_id.hex(), self._seen if is_own else self._seen_of_processes) for span, is_own in spans
        ]
        self._orphans.arrived([span.span_id.hex() for span, is_own in spans if is_own])
        self._show_content(span for (span, is_own), is_new in zip(spans, are_new, strict=True) if is_own and is_new)
        if not all(are_new):
            request = select(request, are_new)
        if number := sum(are_new):
            self._export(Batch(request.SerializeToString(), number), replayed)
        return len(are_new) - number

    def _show_content(self, spans: Iterable[OtlpSpan]) -> None:
        """Copy the first prompt and the last answer from the spans of turns, as backends list a trace by its root."""
        for span in spans:
            for pair in span.attributes if span.name == "agent.execute" else ():
                if pair.key == "gen_ai.input.messages":
                    self.root.attributes.setdefault(pair.key, pair.value.string_value)
                elif pair.key == "gen_ai.output.messages":
                    self.root.attributes[pair.key] = pair.value.string_value

    def end_orphans(self, error_type: ErrorType, message: str) -> None:
        """End and export the spans that the runner left open."""
        orphans = list(self._orphans.take(error_type, message, time.time_ns()))
        for span in orphans:
            # Their texts come from events of the sandbox, so they are cleaned as its spans are.
            span.name = brief(span.name)
            span.attributes = {
                name: clean.attribute_text(name, value, self._given) if isinstance(value, str) else value
                for name, value in span.attributes.items()
            } | self._common
        self._export_own(orphans)

    # -- the host's own spans ----------------------------------------------------------------------------

    def close(self, error_type: ErrorType | None, message: str) -> None:
        """End and export the session's span."""
        if error_type is not None:
            self.root.fail(error_type, message)
        self._spans.close(self.root)
        self._export_ended()
        self.leave()

    def leave(self) -> None:
        """Leave the session. If its span is still open, another process ends it."""
        self._telemetry.end(tuple(self._trace_ids), self._who)

    def write(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until all spans so far are in the spool; return whether they are."""
        return self._telemetry.write(timeout)

    def replay_own(self, body: bytes) -> None:
        """Export again the spans of this session's previous host, which may have died before it delivered them.

        ``body`` is that host's `own`.
        """
        if not body or not self._telemetry.enabled:
            return
        from google.protobuf.message import DecodeError  # not loaded with telemetry off
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        try:
            request = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            _logger.warning("the previous host's spans of this session cannot be read, and are lost: %s", error)
            return
        self._export_new(request, replayed=True)
        self.own += body

    def _export_ended(self) -> None:
        self.own += self._export_own(self._spans.take_ended())

    def _export_own(self, spans: Sequence[Span]) -> bytes:
        """Export spans of the host; return them as one serialized OTLP request."""
        if not spans or not self._telemetry.enabled:
            return b""
        from agent_runner.contract import readable  # not loaded with telemetry off
        from host_client.telemetry.otlp import trace_state

        for span in spans:
            span.tracestate = trace_state(span.tracestate)
        body = otlp.encode(spans, readable.resource(SERVICE_NAME))
        self._export(Batch(body, len(spans)), replayed=False)
        if self._on_own_spans is not None:
            try:
                self._on_own_spans(body)
            except Exception:  # the caller's function must not break the agent
                self._telemetry.lose("fault of on_own_spans", len(spans))
                _logger.exception("on_own_spans failed, so these spans of the host are not stored; the agent goes on")
        return body

    def _export(self, spans: Batch, replayed: bool) -> None:
        self._kept_bytes += len(spans.body)
        if self._kept_spans < MAX_KEPT and self._kept_bytes <= MAX_KEPT_BYTES:
            self._kept.append(spans)
            self._kept_spans += spans.spans
        self._telemetry.export(spans, replayed=replayed)


def _is_new(span_id: str, seen: set[str]) -> bool:
    """Add an id to those that were seen, at most `MAX_RELAYED`; return whether it was added."""
    if span_id in seen or len(seen) >= MAX_RELAYED:
        return False
    seen.add(span_id)
    return True
