"""Interpret the answers of OTLP receivers. Pure.

This follows the OTLP specification, except that spans are not given up for a cause that a person can fix: requests with
a wrong key or address are repeated, slowly. The sender finds out whether a refusal is for a fault of the spans.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import shown

from . import Delivered, Outcome, Refused, Retry, TooLarge

SLOWLY = 60.0
"""Seconds between two tries if a person has to fix the cause."""

_REFUSED = (400, 422)
_KEYS = (401, 403)
_BUSY = (408, 425, 429)


def of_http(
    status: int, headers: Mapping[str, str], body: bytes, now: float, clean: Callable[[str], str] = brief
) -> Outcome:
    """Return the outcome of an HTTP answer; header names are in lower case, ``now`` in seconds since the epoch.

    ``clean`` removes secrets from the answer's text and shortens it.
    """
    kind = headers.get("content-type", "")
    if 200 <= status < 300:
        if "html" in kind:
            return Retry(SLOWLY, f"HTTP {status} with a web page: the address is not an OTLP endpoint", True)
        return of_response(*_partial_success(kind, body))
    if 300 <= status < 400:
        where = shown(headers.get("location", ""))
        return Retry(SLOWLY, f"HTTP {status}, a redirect to {where}, which is not followed: correct the address", True)
    answer = clean(_message(kind, body))
    if status == 413:
        return TooLarge(f"HTTP {status}: the request is too large", answer)
    if status in _REFUSED:
        return Refused(f"HTTP {status}", answer)
    if status in _KEYS:
        return Retry(SLOWLY, f"HTTP {status}: the key is missing or wrong", True, answer)
    after = retry_after(headers.get("retry-after", ""), now)
    if status in _BUSY or status >= 500:
        return Retry(after, f"HTTP {status}", answer=answer)
    return Retry(max(after or 0.0, SLOWLY), f"HTTP {status}: is the address right?", True, answer)


def of_response(rejected: int, why: str) -> Delivered:
    """Return the outcome of an OTLP answer with a partial success."""
    return Delivered(max(0, rejected), brief(why))


def retry_after(value: str, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which is a number or a date; None if it is neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _partial_success(kind: str, body: bytes) -> tuple[int, str]:
    """Return the number of rejected spans and the reason; 0 if the body of the answer cannot be read."""
    try:
        if "json" not in kind:
            partial = ExportTraceServiceResponse.FromString(body).partial_success
            return partial.rejected_spans, partial.error_message
        success = _dict(_dict(json.loads(body)).get("partialSuccess"))
        return int(success.get("rejectedSpans", 0)), str(success.get("errorMessage", ""))
    except (DecodeError, ValueError, TypeError, RecursionError):
        return 0, ""


def _message(kind: str, body: bytes) -> str:
    """Return the message in the body of an answer, the whole body if it has none that can be read."""
    text = body.decode("utf-8", "replace")
    try:
        if "protobuf" in kind:
            return Status.FromString(body).message
        message = _dict(json.loads(body)).get("message") if "json" in kind else None
    except (DecodeError, ValueError, RecursionError):
        return text
    return message if isinstance(message, str) else text


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
