"""One session's trace: what the host does, what the sandbox relays, what a dead runner left, in one place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_runner.contract.protocol import AnyEvent, ApprovalResolved, ErrorType, QuestionResolved
from agent_runner.contract.protocol import TelemetryEvent as TelemetryEvent
from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Span, Spans, Value
from agent_runner.contract.trace_context import TraceContext
from host_client.telemetry.relay import clean
from host_client.telemetry.tail.pipeline import Telemetry, Who

from .orphans import Orphans
from .root import Root

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from host_client.telemetry.relay.relayed import Relayed

SERVICE_NAME = "host_client"
MAX_RELAYED = 50_000
"""Most spans that a session takes from its sandbox; an agent makes three a tool call."""

MAX_GIVEN = 1000
"""Most texts of the host that come back as they were."""

MAX_KEPT = 10_000
MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Most spans, and most bytes of a sandbox's spans, kept for the caller; the exporters get all of them."""

OnOwnSpans = Callable[[bytes], None]
"""Called with a serialized OTLP request of spans that the host itself has ended."""

Relay = Callable[["Relayed", int], None]

_logger = logging.getLogger(__name__)


class SessionTrace:
    """Opens the host's spans, takes in the sandbox's, and exports each as it ends."""

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
        self._orphans = Orphans(common)
        self._trace_ids = {self.root.trace_id}
        self._given = {value for value in (*common.values(), self.root.tracestate) if isinstance(value, str) and value}
        self._seen = {self.root.span_id}
        self._kept: list[list[ReadableSpan] | bytes] = []
        """Spans of the host's own, and of the sandbox's as OTLP."""
        self._kept_spans = self._kept_bytes = 0
        self.own = b""
        """The host's own spans so far, as one OTLP request; rebuilt ones are not in it."""
        telemetry.begin(self.root.trace_id, who)

    @property
    def kept(self) -> list[ReadableSpan]:
        """The session's spans, for its caller; made when they are asked for."""
        if not self._kept:
            return []
        from host_client.telemetry.otlp import decode  # OpenTelemetry: not with telemetry off

        parts = (part if isinstance(part, list) else decode(part) for part in self._kept)
        return list(islice((span for part in parts for span in part), MAX_KEPT))

    @property
    def context(self) -> TraceContext:
        """The session's root span as the parent of the runner's spans."""
        return TraceContext(self.root.trace_id, self.root.span_id, self._flags, self.root.tracestate)

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces that spans are taken of."""
        return tuple(sorted(self._trace_ids))

    def admit(self, caller: TraceContext) -> None:
        """Let spans of a further trace in: a turn may belong to its caller's."""
        self.tell(caller.tracestate)
        if caller.trace_id not in self._trace_ids:
            self._trace_ids.add(caller.trace_id)
            self._telemetry.join(caller.trace_id, self._who)

    def tell(self, text: str | None) -> None:
        """The sandbox is told a text, such as who decided: spans may hold it as it is, even if it is an address."""
        if text and len(self._given) < MAX_GIVEN:
            self._given.add(text)

    @contextmanager
    def current(self, span: Span | None = None) -> Generator[None]:
        """Make a span (default: the session's) the parent of what instrumented libraries emit meanwhile.

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

    def observe(self, event: AnyEvent, size: int = 0) -> str | None:
        """Take an event in, of so many bytes; return what is wrong with it, if something is."""
        event = self._honest(event)
        self._telemetry.observe(event, self._who, size)
        return self._follow(event, size, self._telemetry.relay)

    def recall(self, event: AnyEvent, size: int = 0) -> str | None:
        """Take an event in that another process has observed; its spans go out again, with the ids they had."""
        self._telemetry.recall(event, self._who, size)
        return self._follow(event, size, self._telemetry.relay_again)

    def _follow(self, event: AnyEvent, size: int, relay: Relay) -> str | None:
        if not self._telemetry.enabled:
            return None
        if event.trace_id in self._trace_ids:
            self._orphans.observe(event, size)
        if not isinstance(event, TelemetryEvent):
            return None
        if len(self._seen) >= MAX_RELAYED:
            return f"more than {MAX_RELAYED} spans: these are not taken"
        from host_client.telemetry.relay.decoding import decode  # OpenTelemetry: not with telemetry off

        try:
            relayed = decode(event.data.otlp, trace_ids=self._trace_ids, common=self._common, given=self._given)
        except ValueError as error:
            return str(error)
        span_ids = relayed.span_ids()
        taken = relayed.keep_only([self._is_new(span_id) for span_id in span_ids])
        self._orphans.arrived(frozenset(span_ids))
        if len(relayed):
            otlp = relayed.encoded()
            self._keep(otlp, len(relayed), len(otlp))
            relay(relayed, len(otlp))
        return f"{taken} spans with ids that were taken" if taken else None

    def _honest(self, event: AnyEvent) -> AnyEvent:
        """Return the event with who decided cleaned, where it is nobody whom the host has named."""
        if not isinstance(event, ApprovalResolved | QuestionResolved):
            return event
        by = event.data.decided_by
        if by is None or by in self._given:
            return event
        return replace(event, data=replace(event.data, decided_by=brief(by)))

    def _is_new(self, span_id: str) -> bool:
        if span_id in self._seen:
            return False
        self._seen.add(span_id)
        return True

    def end_orphans(self, error_type: ErrorType, message: str) -> None:
        """End what the runner left open."""
        left = list(self._orphans.take(error_type, message, time.time_ns()))
        for span in left:
            span.name = clean.name(span.name)
            span.attributes = {**clean.attributes(span.attributes.items(), self._given), **self._common}
        self._export_own(left)

    def close(self, error_type: ErrorType | None, message: str) -> None:
        """End the session's span."""
        if error_type is not None:
            self.root.fail(error_type, message)
        self._spans.close(self.root)
        self._export_ended()
        self.leave()

    def leave(self) -> None:
        """Take no more in; a session's span that is open is another process's to end."""
        self._telemetry.end(tuple(self._trace_ids), self._who)

    def recall_own(self, request: bytes) -> None:
        """Take in the spans that another process ended as this session's host: it may not have delivered them."""
        if not request or not self._telemetry.enabled:
            return
        from google.protobuf.message import DecodeError

        from host_client.telemetry.otlp import decode  # OpenTelemetry: not with telemetry off

        try:
            spans = [span for span in decode(request) if self._is_new(_id_of(span))]
            self._orphans.arrived(frozenset(map(_id_of, spans)))
        except DecodeError as error:
            _logger.warning("the host's earlier spans cannot be read, and are not sent again: %s", error)
            return
        self.own += request
        self._keep(spans, len(spans))
        self._telemetry.export_again(spans)

    def _export_ended(self) -> None:
        self.own += self._export_own(self._spans.take_ended())

    def _export_own(self, spans: list[Span]) -> bytes:
        """Export spans of the host's making; return them as OTLP."""
        if not spans or not self._telemetry.enabled:
            return b""
        readable = self._readable(spans)
        self._keep(readable, len(readable))
        self._telemetry.export(readable)
        return self._told(readable)

    def _told(self, spans: Sequence[ReadableSpan]) -> bytes:
        from host_client.telemetry.otlp import encode  # OpenTelemetry: not with telemetry off

        request, count = encode(spans)
        if self._on_own_spans is not None:
            try:
                self._on_own_spans(request)
            except Exception:  # the caller's function: it breaks no agent
                self._telemetry.lose("fault of on_own_spans", count)
                _logger.exception("the host's own spans were not taken; the agent goes on")
        return request

    def _readable(self, spans: list[Span]) -> list[ReadableSpan]:
        from agent_runner.contract import readable  # OpenTelemetry: not with telemetry off

        resource = readable.resource(SERVICE_NAME)
        return [readable.readable(span, resource) for span in spans]

    def _keep(self, part: list[ReadableSpan] | bytes, number: int, size: int = 0) -> None:
        self._kept_bytes += size
        if self._kept_spans < MAX_KEPT and self._kept_bytes <= MAX_KEPT_BYTES:
            self._kept.append(part)
            self._kept_spans += number


def _id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"{context.span_id:016x}" if context else ""
