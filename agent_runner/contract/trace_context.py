"""W3C Trace Context and Baggage as they stand in environment variables. Pure.

OpenTelemetry's own propagator drops an invalid header without a word; a runner whose parent got lost
must be able to say why. Sources: https://www.w3.org/TR/trace-context-2/ and
https://www.w3.org/TR/baggage/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

MAX_TRACESTATE = 512
MAX_BAGGAGE = 8192

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class InvalidTraceParentError(ValueError):
    """The header cannot be followed; the message says why in a line."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A parent span: ids in lower-case hex, flags as they came, tracestate as a header."""

    trace_id: str
    span_id: str
    flags: int = 1
    tracestate: str = ""

    @property
    def traceparent(self) -> str:
        """The header for a child, sampled: whether a trace is kept is decided later, on the host."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def parse_traceparent(header: str, tracestate: str = "") -> TraceContext:
    """Read a ``traceparent`` header; raise `InvalidTraceParentError` where the specification says to restart."""
    if len(header) > MAX_TRACESTATE:
        raise InvalidTraceParentError(f"TRACEPARENT is {len(header)} characters long")
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        raise InvalidTraceParentError(f"TRACEPARENT is malformed: {header[:80]!r}")
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff":
        raise InvalidTraceParentError("TRACEPARENT has the forbidden version ff")
    if version == "00" and rest is not None:
        raise InvalidTraceParentError("TRACEPARENT of version 00 has trailing data")
    if trace_id == "0" * 32:
        raise InvalidTraceParentError("TRACEPARENT has a trace id of zeros")
    if span_id == "0" * 16:
        raise InvalidTraceParentError("TRACEPARENT has a parent id of zeros")
    # What UTF-8 cannot encode, an environment can hold; the header is printable ASCII.
    kept = tracestate if len(tracestate) <= MAX_TRACESTATE and tracestate.isascii() else ""
    return TraceContext(trace_id, span_id, int(flags, 16), kept)


def parse_baggage(header: str) -> dict[str, str]:
    """Read a ``baggage`` header; what is malformed in it is left out, as the specification says."""
    if len(header) > MAX_BAGGAGE:
        return {}
    entries: dict[str, str] = {}
    for member in header.split(","):
        name, separator, rest = member.partition("=")
        if separator and name.strip():
            entries[name.strip()] = unquote(rest.partition(";")[0].strip())
    return entries
