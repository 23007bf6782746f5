"""Errors that the host reports of itself, as events among those of the runner."""

from __future__ import annotations

import time

from agent_runner.contract.protocol import PROTOCOL_VERSION, AnyEvent, Error, ErrorData, ErrorType
from host_client.telemetry import SessionTrace

from .mailbox import Outlet


def host_error(trace: SessionTrace, error_type: ErrorType, message: str) -> Error:
    """Return an error of the session's span, counted by telemetry. It has no ``seq``, which only the runner gives."""
    data = ErrorData(error_type=error_type, message=message)
    root = trace.root
    event = Error(v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data)
    trace.observe(event)
    return event


async def tell(trace: SessionTrace, outlet: Outlet[AnyEvent], error_type: ErrorType, message: str) -> None:
    """Put an error of the host into a session's events, waiting for room."""
    await outlet.put(host_error(trace, error_type, message), len(message))
