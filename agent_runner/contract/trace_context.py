"""Read W3C Trace Context and Baggage from a request's headers or from environment variables. Pure.

A context that is not valid is ignored, so that a new trace begins, and the reason is reported once. OpenTelemetry's own
propagator does not report why it drops a header, so we read the headers ourselves.
Sources: https://www.w3.org/TR/trace-context-2/ and https://www.w3.org/TR/baggage/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

RawHeaders = Iterable[tuple[bytes, bytes]]
"""Names and values of headers in the order of the request, as in an ASGI scope."""

Report = Callable[[str], object]
"""Receives a sentence that says what is ignored and why."""

MAX_TRACEPARENT = 512
MAX_TRACESTATE = 512
"""Maximum characters of a tracestate that are passed on: the minimum that the specification requires."""
MAX_MEMBERS = 32
LONG_MEMBER = 128
"""Characters above which a member is the first to be removed from a tracestate that is too long (W3C)."""
MAX_BAGGAGE = 8192
MAX_SHOWN = 80

SAMPLED, RANDOM = 1, 2
"""The trace flags of level 2; the other bits are reserved."""

_OWS = " \t"
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MEMBER = re.compile(r"([a-z0-9][a-z0-9_*/@-]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
"""Key and value of a tracestate: printable ASCII without comma and equals sign; a value does not end in a space."""

_logger = logging.getLogger(__name__)


class InvalidTraceParentError(ValueError):
    """A traceparent is not valid; the message says why."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The context of a parent span: ids in lower-case hex, the known flags, and the tracestate as one header."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED
    tracestate: str = ""

    @property
    def traceparent(self) -> str:
        """Return the header for a child. It is always sampled, as the host decides later which traces it keeps."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags | SAMPLED:02x}"


def from_headers(raw: RawHeaders, report: Report = _logger.warning) -> TraceContext | None:
    """Return the parent context in a request's headers, or None if there is no valid one."""
    headers = list(raw)
    parents = _values(headers, b"traceparent")
    if len(parents) > 1:
        report(f"traceparent was sent {len(parents)} times; it is ignored")
        return None
    return from_fields(parents[0] if parents else None, ",".join(_values(headers, b"tracestate")), report)


def from_environment(environ: Mapping[str, str], report: Report = _logger.warning) -> TraceContext | None:
    """Return the parent context in TRACEPARENT and TRACESTATE, or None if there is no valid one."""
    # An empty variable counts as one that is not set.
    return from_fields(environ.get("TRACEPARENT") or None, environ.get("TRACESTATE", ""), report)


def from_fields(traceparent: str | None, tracestate: str, report: Report = _logger.warning) -> TraceContext | None:
    """Return the parent context in a traceparent and a tracestate, or None if there is no valid one."""
    if traceparent is None:
        return None
    try:
        return parse_traceparent(traceparent, tracestate, report)
    except InvalidTraceParentError as error:
        report(f"{error}; it is ignored")
        return None


def parse_traceparent(traceparent: str, tracestate: str = "", report: Report = _logger.warning) -> TraceContext:
    """Return the parent context in a traceparent; raise `InvalidTraceParentError` if it is not valid."""
    traceparent = traceparent.strip(_OWS)
    if len(traceparent) > MAX_TRACEPARENT:
        raise InvalidTraceParentError(f"traceparent is {len(traceparent)} characters long")
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        raise InvalidTraceParentError(f"traceparent is malformed: {_shown(traceparent)}")
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff":
        raise InvalidTraceParentError("traceparent has the forbidden version ff")
    if version == "00" and rest is not None:
        raise InvalidTraceParentError("traceparent of version 00 has trailing data")
    if trace_id == "0" * 32:
        raise InvalidTraceParentError("traceparent has a trace id of zeros")
    if span_id == "0" * 16:
        raise InvalidTraceParentError("traceparent has a parent id of zeros")
    return TraceContext(trace_id, span_id, int(flags, 16) & (SAMPLED | RANDOM), _tracestate(tracestate, report))


def baggage_from_headers(raw: RawHeaders, report: Report = _logger.warning) -> dict[str, str]:
    """Return the entries in a request's ``baggage`` headers."""
    return _baggage(",".join(_values(raw, b"baggage")), report)


def baggage_from_environment(environ: Mapping[str, str], report: Report = _logger.warning) -> dict[str, str]:
    """Return the entries in the variable BAGGAGE."""
    return _baggage(environ.get("BAGGAGE", ""), report)


def _values(raw: RawHeaders, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in raw if key.lower() == name]


def _tracestate(text: str, report: Report) -> str:
    """Return a tracestate with each key once; empty if a member is malformed or there are too many."""
    members = [member for each in text.split(",") if (member := each.strip(_OWS))]
    if len(members) > MAX_MEMBERS:
        report(f"tracestate has {len(members)} members, more than {MAX_MEMBERS}; it is ignored")
        return ""
    by_key: dict[str, str] = {}
    for member in members:
        if (match := _MEMBER.fullmatch(member)) is None:
            report(f"tracestate has a malformed member, {_shown(member)}; it is ignored")
            return ""
        by_key.setdefault(match[1], member)  # the leftmost is the most recent
    return _fitting(list(by_key.values()), report)


def _fitting(members: list[str], report: Report) -> str:
    """Join as many whole members as fit into `MAX_TRACESTATE`."""
    left_out = 0
    while len(joined := ",".join(members)) > MAX_TRACESTATE:
        long = [member for member in members if len(member) > LONG_MEMBER]
        members.remove((long or members)[-1])
        left_out += 1
    if left_out:
        report(f"tracestate is longer than {MAX_TRACESTATE} characters; {left_out} of its members are ignored")
    return joined


def _baggage(text: str, report: Report) -> dict[str, str]:
    """Return the well-formed entries with decoded values; the others are ignored, as the specification says."""
    if len(text) > MAX_BAGGAGE:
        report(f"baggage is {len(text)} characters long, more than {MAX_BAGGAGE}; it is ignored")
        return {}
    entries: dict[str, str] = {}
    malformed = 0
    for member in filter(str.strip, text.split(",")):
        name, separator, rest = member.partition("=")
        if separator and name.strip():
            entries[name.strip()] = unquote(rest.partition(";")[0].strip())
        else:
            malformed += 1
    if malformed:
        report(f"baggage has malformed entries; {malformed} of them are ignored")
    return entries


def _shown(text: str) -> str:
    return repr(text[:MAX_SHOWN])
