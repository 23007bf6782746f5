"""The parts of a session that its other parts share, and the errors that the host itself adds to the events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from agent_runner.contract.protocol import PROTOCOL_VERSION, AnyEvent, Error, ErrorData, ErrorType
from host_client.telemetry import SessionTrace

from ._outcome import SessionOutcome
from .mailbox import Outlet


@dataclass(frozen=True)
class SharedParts:
    """The trace, the outcome and the outlet of one session; ``ended`` is set when its runner has ended."""

    trace: SessionTrace
    outcome: SessionOutcome
    outlet: Outlet[AnyEvent]
    ended: asyncio.Event

    def host_error(self, error_type: ErrorType, message: str) -> Error:
        """Return an error event on the session's span, and count it in telemetry. It has no ``seq``."""
        data = ErrorData(error_type=error_type, message=message)
        root = self.trace.root
        event = Error(v=PROTOCOL_VERSION, ts=time.time(), trace_id=root.trace_id, span_id=root.span_id, data=data)
        self.trace.observe(event)
        return event

    async def report(self, error_type: ErrorType, message: str) -> None:
        """Add an error of the host to the session's events, waiting for room."""
        await self.outlet.put(self.host_error(error_type, message), len(message))


def too_old_for(ignored: Iterable[str]) -> str:
    """Return the message about a runner that ignores what this host has given it, or would give it."""
    return (
        f"the runner in this sandbox ignores {', '.join(ignored)}: it is older than this host;"
        " build the template again (host_client template build)"
    )
