"""One session's trace: what the host does, what the sandbox relays, what a dead runner left, in one place."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent_runner.protocol import AnyEvent, ErrorType
from agent_runner.protocol import Telemetry as TelemetryEvent
from agent_runner.spans import Span, Spans, Value
from agent_runner.trace_context import TraceContext

from .orphans import Orphans
from .pipeline import Telemetry, Who

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

SERVICE_NAME = "host_client"
MAX_RELAYED = 50_000
"""Most spans that a session takes from its sandbox; an agent makes three a tool call."""

MAX_KEPT = 10_000
MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Most spans, and most of what a sandbox relays, kept for the caller; the exporters get all of them."""


class SessionTrace:
    """Opens the host's spans, takes in the sandbox's, and exports each as it ends."""

    def __init__(
        self, telemetry: Telemetry, common: Mapping[str, Value], parent: TraceContext | None, who: Who
    ) -> None:
        self._telemetry = telemetry
        self._who = who
        self._common = dict(common)
        self._spans = Spans(common)
        self.parent = parent or self._spans.new_trace()
        self.root = self._spans.open_root("agent.session", self.parent, {})
        self._orphans = Orphans(common)
        self._trace_ids = {self.root.trace_id}
        self._seen = {self.root.span_id}
        self._relayed = 0
        self.kept: list[ReadableSpan] = []
        telemetry.begin(self.root.trace_id, who)

    @property
    def context(self) -> TraceContext:
        """What the runner's TRACEPARENT says."""
        return TraceContext(self.root.trace_id, self.root.span_id, 1, self.root.tracestate)

    def admit(self, trace_id: str) -> None:
        """Let spans of a further trace in: a turn may belong to its caller's."""
        if trace_id not in self._trace_ids:
            self._trace_ids.add(trace_id)
            self._telemetry.join(trace_id, self._who)

    @contextmanager
    def current(self, span: Span | None = None) -> Generator[None]:
        """Make a span (default: the session's) the parent of what instrumented libraries emit meanwhile.

        The E2B SDK emits spans of its own to a process-wide tracer provider, where there is one.
        """
        if not self._telemetry.enabled:
            yield
            return
        from .foreign import parent_of_foreign_spans  # OpenTelemetry: not with telemetry off

        with parent_of_foreign_spans(span or self.root):
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
            self._export_own()

    def observe(self, event: AnyEvent, size: int = 0) -> str | None:
        """Take an event in, of so many bytes; return what is wrong with it, if something is."""
        self._telemetry.observe(event, self._who, size)
        if event.trace_id in self._trace_ids:
            self._orphans.observe(event)
        if not isinstance(event, TelemetryEvent) or not self._telemetry.enabled:
            return None
        if len(self._seen) >= MAX_RELAYED:
            return f"more than {MAX_RELAYED} spans: these are not taken"
        from .relay import decode  # OpenTelemetry: not with telemetry off

        try:
            spans = decode(event.data.otlp, trace_ids=frozenset(self._trace_ids), common=self._common)
        except ValueError as error:
            return str(error)
        new = [span for span in spans if self._is_new(span)]
        self._relayed += len(event.data.otlp)
        self._export(new, len(event.data.otlp), keep=self._relayed <= MAX_KEPT_BYTES)
        return None if len(new) == len(spans) else f"{len(spans) - len(new)} spans with ids that were taken"

    def _is_new(self, span: ReadableSpan) -> bool:
        context = span.get_span_context()
        span_id = f"{context.span_id:016x}" if context else ""
        if span_id in self._seen:
            return False
        self._seen.add(span_id)
        self._orphans.arrived(span_id)
        return True

    def end_orphans(self, error_type: ErrorType, message: str) -> None:
        """End what the runner left open."""
        left = list(self._orphans.take(error_type, message, time.time_ns()))
        if left and self._telemetry.enabled:
            self._export(self._readable(left))

    def close(self, error_type: ErrorType | None, message: str) -> None:
        """End the session's span."""
        if error_type is not None:
            self.root.fail(error_type, message)
        self._spans.close(self.root)
        self._export_own()
        self._telemetry.end(tuple(self._trace_ids), self._who)

    def _export_own(self) -> None:
        ended = self._spans.take_ended()
        if ended and self._telemetry.enabled:
            self._export(self._readable(ended))

    def _readable(self, spans: list[Span]) -> list[ReadableSpan]:
        from agent_runner import otlp  # OpenTelemetry: not with telemetry off

        resource = otlp.resource(SERVICE_NAME)
        return [otlp.readable(span, resource) for span in spans]

    def _export(self, spans: list[ReadableSpan], size: int = 0, *, keep: bool = True) -> None:
        if keep:
            self.kept.extend(spans[: MAX_KEPT - len(self.kept)])
        self._telemetry.export(spans, size)
