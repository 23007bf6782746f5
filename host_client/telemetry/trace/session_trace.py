"""The trace of one session: the host's own spans, those of the sandbox, and those that a dead runner left open."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_runner.contract import otlp
from agent_runner.contract.protocol import AnyEvent, ApprovalResolved, ErrorType, QuestionResolved, TelemetryEvent
from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Span, Spans, Value
from agent_runner.contract.trace_context import TraceContext
from host_client.telemetry.batch import Batch
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.relay import clean
from host_client.telemetry.tail.pipeline import Telemetry, Who

from .orphans import Orphans
from .root import Root

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace import ReadableSpan

SERVICE_NAME = "host_client"
MAX_RELAYED = 50_000
"""Limit of spans that a session takes from its sandbox; an agent makes three for each tool call."""

MAX_GIVEN = 1000
"""Limit of texts of the host that spans may hold unchanged."""

MAX_KEPT = 10_000
"""Limit of spans that are kept for the caller; the destinations get all of them."""

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Limit of the bytes in them."""

OnOwnSpans = Callable[[bytes], None]
"""Called with a serialized OTLP request of spans that the host itself has ended."""

_logger = logging.getLogger(__name__)


class SessionTrace:
    """Opens the host's spans, takes in those of the sandbox, and exports each as it ends.

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
        """The session's tool calls; other parts only read them."""
        self._orphans = Orphans(common, self.calls)
        self._trace_ids = {self.root.trace_id}
        self._given = {value for value in (*common.values(), self.root.tracestate) if isinstance(value, str) and value}
        self._seen = {self.root.span_id}
        self._kept: list[Batch] = []
        self._kept_spans = self._kept_bytes = 0
        self.own = b""
        """The host's own spans so far, as one serialized OTLP request; rebuilt ones are not in it."""
        telemetry.begin(self.root.trace_id, who, self.calls)

    @property
    def kept(self) -> list[ReadableSpan]:
        """The session's spans for its caller, in OpenTelemetry's own class."""
        if not self._kept:
            return []
        from host_client.telemetry.otlp import readable  # OpenTelemetry: not with telemetry off

        return list(islice((span for batch in self._kept for span in readable(batch.body)), MAX_KEPT))

    @property
    def context(self) -> TraceContext:
        """The session's root span as the parent of the runner's spans."""
        return TraceContext(self.root.trace_id, self.root.span_id, self._flags, self.root.tracestate)

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces that the session's spans may belong to."""
        return tuple(sorted(self._trace_ids))

    def admit(self, caller: TraceContext) -> None:
        """Accept spans of a further trace: a turn may belong to its caller's."""
        self.tell(caller.tracestate)
        if caller.trace_id not in self._trace_ids:
            self._trace_ids.add(caller.trace_id)
            self._telemetry.join(caller.trace_id, self._who)

    def tell(self, text: str | None) -> None:
        """Note a text that the sandbox is sent, such as who decided: spans may hold it unchanged, even an address."""
        if text and len(self._given) < MAX_GIVEN:
            self._given.add(text)

    @contextmanager
    def current(self, span: Span | None = None) -> Generator[None]:
        """Make a span (default: the session's) the parent of spans that instrumented libraries emit meanwhile.

        The E2B SDK emits spans of its own to a process-wide tracer provider, where there is one.
        """
        if not self._telemetry.enabled:
            yield
            return
        from ._foreign import parent_of_foreign_spans  # OpenTelemetry: not with telemetry off

        with parent_of_foreign_spans(span or self.root, self._flags):
            yield

    @contextmanager
    def span(self, name: str) -> Generator[Span]:
        """Open a span under the session's; an exception fails it."""
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
        """Take in an event of so many bytes; return what is wrong with it, if something is.

        Another process that died has observed ``replayed`` events: their spans are exported again, under the same ids,
        and nothing is counted again.
        """
        event = self._honest(event)
        self.calls.observe(event)
        self._telemetry.observe(event, self._who, size, replayed=replayed)
        if not self._telemetry.enabled:
            return None
        if event.trace_id in self._trace_ids:
            self._orphans.observe(event)
        return self._relay(event.data.otlp, replayed) if isinstance(event, TelemetryEvent) else None

    def _honest(self, event: AnyEvent) -> AnyEvent:
        """Clean who decided, unless the host has named them."""
        if not isinstance(event, ApprovalResolved | QuestionResolved):
            return event
        by = event.data.decided_by
        if by is None or by in self._given:
            return event
        return replace(event, data=replace(event.data, decided_by=brief(by)))

    def _relay(self, payload: str, replayed: bool) -> str | None:
        if len(self._seen) >= MAX_RELAYED:
            return f"more than {MAX_RELAYED} spans: these are not taken"
        from host_client.telemetry.relay.decoding import decode  # OpenTelemetry: not with telemetry off

        try:
            request = decode(payload, trace_ids=self._trace_ids, common=self._common, given=self._given)
        except ValueError as error:
            return str(error)
        duplicates = self._export_new(request, replayed)
        return f"{duplicates} spans with ids that were taken" if duplicates else None

    def _export_new(self, request: ExportTraceServiceRequest, replayed: bool) -> int:
        """Export the spans whose ids are new; return the number of the others."""
        from host_client.telemetry.otlp import select, spans_of  # OpenTelemetry: not with telemetry off

        span_ids = [span.span_id.hex() for span in spans_of(request)]
        are_new = [self._is_new(span_id) for span_id in span_ids]
        self._orphans.arrived(span_ids)
        if not all(are_new):
            request = select(request, are_new)
        if number := sum(are_new):
            self._export(Batch(request.SerializeToString(), number), replayed)
        return len(are_new) - number

    def _is_new(self, span_id: str) -> bool:
        if span_id in self._seen:
            return False
        self._seen.add(span_id)
        return True

    def end_orphans(self, error_type: ErrorType, message: str) -> None:
        """End the spans that the runner left open."""
        left = list(self._orphans.take(error_type, message, time.time_ns()))
        for span in left:
            # They are made of a sandbox's events, and so are cleaned as its spans are.
            span.name = brief(span.name)
            span.attributes = {
                name: clean.said(name, value, self._given) if isinstance(value, str) else value
                for name, value in span.attributes.items()
            } | self._common
        self._export_own(left)

    # -- the host's own spans ----------------------------------------------------------------------------

    def close(self, error_type: ErrorType | None, message: str) -> None:
        """End the session's span."""
        if error_type is not None:
            self.root.fail(error_type, message)
        self._spans.close(self.root)
        self._export_ended()
        self.leave()

    def leave(self) -> None:
        """Take no more in. If the session's span is open, another process ends it."""
        self._telemetry.end(tuple(self._trace_ids), self._who)

    def replay_own(self, body: bytes) -> None:
        """Export again the spans that another process ended as this session's host: it may not have delivered them.

        ``body`` is what `own` was there.
        """
        if not body or not self._telemetry.enabled:
            return
        from google.protobuf.message import DecodeError  # OpenTelemetry: not with telemetry off
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        try:
            request = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            _logger.warning("the host's earlier spans cannot be read, and are not sent again: %s", error)
            return
        self._export_new(request, replayed=True)
        self.own += body

    def _export_ended(self) -> None:
        self.own += self._export_own(self._spans.take_ended())

    def _export_own(self, spans: Sequence[Span]) -> bytes:
        """Export spans of the host; return them as a serialized OTLP request."""
        if not spans or not self._telemetry.enabled:
            return b""
        from agent_runner.contract import readable  # OpenTelemetry: not with telemetry off
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
                _logger.exception("the host's own spans were not taken; the agent goes on")
        return body

    def _export(self, spans: Batch, replayed: bool) -> None:
        self._kept_bytes += len(spans.body)
        if self._kept_spans < MAX_KEPT and self._kept_bytes <= MAX_KEPT_BYTES:
            self._kept.append(spans)
            self._kept_spans += spans.spans
        self._telemetry.export(spans, replayed=replayed)
