"""The root span of a session, whose ids are drawn before the session runs."""

from __future__ import annotations

import time

import msgspec

from agent_runner.contract.spans import Ids
from agent_runner.contract.trace_context import SAMPLED, InvalidTraceParentError, TraceContext, parse_traceparent
from host_client.errors import ConfigurationError


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of a session's root span. ``start`` is in ns since the epoch; ``flags`` are the caller's trace flags."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    tracestate: str
    start: int
    flags: int = SAMPLED


def root_of(traceparent: str | None = None, tracestate: str = "") -> Root:
    """Return a root span that starts now, below the span of a traceparent if given; raise `ConfigurationError`."""
    return root_below(caller_of(traceparent, tracestate))


def root_below(caller: TraceContext | None) -> Root:
    """Return a root span that starts now: below the caller's span, or in a new trace if there is no caller."""
    ids = Ids()
    above = caller or TraceContext(ids.trace_id(), "")
    return Root(
        trace_id=above.trace_id,
        span_id=ids.span_id(),
        parent_span_id=above.span_id or None,
        tracestate=above.tracestate,
        start=time.time_ns(),
        flags=above.flags,
    )


def caller_of(traceparent: str | None, tracestate: str = "") -> TraceContext | None:
    """Parse a traceparent given in code; raise `ConfigurationError` if it is malformed."""
    if traceparent is None:
        return None
    try:
        return parse_traceparent(traceparent, tracestate)
    except InvalidTraceParentError as error:
        raise ConfigurationError(f"{error}. Give 00-TRACE_ID-SPAN_ID-FLAGS, or none for a new trace") from None
