"""What an OTLP receiver's answer means. Pure.

After the OTLP specification, but that nothing is given up which might be mended: a wrong key or address is tried
again, slowly, and only what is wrong with the spans themselves is final.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import shown

from . import Delivered, Outcome, Refused, Retry, TooLarge

SLOWLY = 60.0
"""Seconds between two tries of what a person has to mend."""

_REFUSED = (400, 422)
_KEYS = (401, 403)
_BUSY = (408, 425, 429)


def of_http(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Outcome:
    """Return what an answer over HTTP means; header names in lower case, ``now`` in seconds since the epoch."""
    kind = headers.get("content-type", "")
    if 200 <= status < 300:
        if "html" in kind:
            return Retry(SLOWLY, f"HTTP {status} with a web page: the address is no OTLP endpoint", True)
        return of_response(*_partial_success(kind, body))
    if 300 <= status < 400:
        where = shown(headers.get("location", ""))
        return Retry(SLOWLY, f"HTTP {status}, a redirect to {where}, which is not followed: mend the address", True)
    if status == 413:
        return TooLarge()
    why = f"HTTP {status} {_message(kind, body)}".rstrip()
    if status in _REFUSED:
        return Refused(why)
    if status in _KEYS:
        return Retry(SLOWLY, f"HTTP {status}: the key is missing or wrong", True)
    after = retry_after(headers.get("retry-after", ""), now)
    if status in _BUSY or status >= 500:
        return Retry(after, f"HTTP {status}")
    return Retry(max(after or 0.0, SLOWLY), f"{why}: is the address right?", True)


def of_response(rejected: int, why: str) -> Delivered:
    """Return the success that a partial success is."""
    return Delivered(max(0, rejected), brief(why))


def retry_after(value: str, now: float) -> float | None:
    """Return the seconds of a ``Retry-After``, which are a number or a date; None for neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _partial_success(kind: str, body: bytes) -> tuple[int, str]:
    """Return how many spans were rejected, and why. The answer was a success: what cannot be read says nothing."""
    try:
        if "json" not in kind:
            partial = ExportTraceServiceResponse.FromString(body).partial_success
            return partial.rejected_spans, partial.error_message
        told = _dict(_dict(json.loads(body)).get("partialSuccess"))
        return int(told.get("rejectedSpans", 0)), str(told.get("errorMessage", ""))
    except (DecodeError, ValueError, TypeError, RecursionError):
        return 0, ""


def _message(kind: str, body: bytes) -> str:
    try:
        if "protobuf" in kind:
            return brief(Status.FromString(body).message)
        if "json" in kind:
            return brief(str(_dict(json.loads(body)).get("message", "")))
    except (DecodeError, ValueError, RecursionError):
        return ""
    return brief(body.decode("utf-8", "replace")) if kind.startswith("text/plain") else ""


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
