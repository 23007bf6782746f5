"""The root span of a session as it is announced, before there is a session: others may be told its ids at once."""

from __future__ import annotations

import time

import msgspec

from agent_runner.contract.spans import Ids
from agent_runner.contract.trace_context import InvalidTraceParentError, TraceContext, parse_traceparent
from host_client.errors import ConfigurationError


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The session's root span: known before anything runs, and ended by whoever ends the session. ``start`` in ns."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    tracestate: str
    start: int


def root_of(traceparent: str | None = None, tracestate: str = "") -> Root:
    """Return a root that starts now, below the caller's span if there is one; raise `ConfigurationError`."""
    caller = caller_of(traceparent, tracestate)
    ids = Ids()
    return Root(
        trace_id=caller.trace_id if caller else ids.trace_id(),
        span_id=ids.span_id(),
        parent_span_id=caller.span_id if caller else None,
        tracestate=caller.tracestate if caller else "",
        start=time.time_ns(),
    )


def caller_of(traceparent: str | None, tracestate: str = "") -> TraceContext | None:
    """Return the span that a header names; raise `ConfigurationError` for one that cannot be followed."""
    if traceparent is None:
        return None
    try:
        return parse_traceparent(traceparent, tracestate)
    except InvalidTraceParentError as error:
        raise ConfigurationError(str(error)) from None
