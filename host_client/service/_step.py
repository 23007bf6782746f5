"""Compute what one step of a session writes to the store and sends to its readers. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from agent_runner.contract.protocol import AnyEvent, Result, TelemetryEvent, TextDelta, to_json
from host_client.store.base import Additions, Decision, SessionState
from host_client.telemetry.costs.dollars import cost_of, total_usd

from ._events import ClosedData, OwnEvent
from ._feed import Frame
from ._kept import relayed
from ._limits import day_of
from ._sse import frame
from ._state import CHANGING, after_event, after_own, decision_in


@dataclass(eq=False, slots=True)
class OwnChange:
    """A change by the service: its event, new values of fields of the state, and a future for when they are stored."""

    event: OwnEvent | None
    changed: Mapping[str, Any]
    written: asyncio.Future[None]


class Step:
    """The effect of queued ``items`` on a session.

    ``state`` is the state after it, ``lines`` are the events' JSON, ``frames`` what readers are sent, and ``more`` what
    is stored with the events. ``own_spans`` and ``extras`` are the log's, ``now`` is the time of the step.
    """

    def __init__(
        self,
        state: SessionState,
        items: Sequence[AnyEvent | OwnChange],
        own_spans: Sequence[bytes],
        extras: Mapping[str, Any],
        now: float,
    ) -> None:
        self.lines: list[bytes] = []
        self.frames: list[Frame] = []
        self._number = state.last_event_id
        self._spans = list(own_spans)
        self._decisions: list[Decision] = []
        self._cost_usd = 0.0
        self._state = state
        self._seen_seq = state.seen_seq
        for each in items:
            if isinstance(each, OwnChange):
                self._add_change(each)
            else:
                self._add_event(each)
        self.state = replace(self._state, last_event_id=self._number, updated_at=now, seen_seq=self._seen_seq, **extras)
        day = day_of(now) if self._cost_usd else ""
        self.more = Additions(spans=self._spans, decisions=self._decisions, cost_usd=self._cost_usd, day=day)

    def _add_event(self, event: AnyEvent) -> None:
        """Add an event of the agent."""
        self._seen_seq = event.seq or self._seen_seq
        if isinstance(event, CHANGING):
            self._state = after_event(self._state, event, self._number + 1)
        if isinstance(event, TelemetryEvent):
            self._spans.append(relayed(event.data.otlp))
        elif isinstance(event, TextDelta):
            self.frames.append(Frame(None, frame(to_json(event)), after=self._number))
        else:
            self._add_line(to_json(event))
            if isinstance(event, Result):
                self._cost_usd = total_usd(self._cost_usd, cost_of(event))
            elif (decision := decision_in(event)) is not None:
                self._decisions.append(decision)

    def _add_change(self, change: OwnChange) -> None:
        """Add a change by the service."""
        if change.event is not None:
            self._state = after_own(self._state, change.event)
            data = change.event.data
            self._add_line(to_json(change.event), is_last=isinstance(data, ClosedData))
            if isinstance(data, ClosedData):
                self._cost_usd = total_usd(self._cost_usd, data.estimated_usd)
        if change.changed:
            self._state = replace(self._state, **change.changed)

    def _add_line(self, line: bytes, *, is_last: bool = False) -> None:
        self._number += 1
        self.lines.append(line)
        self.frames.append(Frame(self._number, frame(line, self._number), is_last))
