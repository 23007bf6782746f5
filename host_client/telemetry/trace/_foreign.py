"""Makes a span of ours the parent of spans that other libraries emit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import context, trace

from agent_runner.contract.spans import Span
from agent_runner.contract.trace_context import SAMPLED


@contextmanager
def parent_of_foreign_spans(span: Span, flags: int) -> Generator[None]:
    """Set OpenTelemetry's current context to ``span``, always sampled, for this task and those it starts."""
    about = trace.SpanContext(
        int(span.trace_id, 16), int(span.span_id, 16), is_remote=False, trace_flags=trace.TraceFlags(flags | SAMPLED)
    )
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(about), context.Context()))
    try:
        yield
    finally:
        context.detach(token)
