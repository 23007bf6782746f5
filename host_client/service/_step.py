"""What is written at once of a session, and shown then. Pure."""

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
class Own:
    """An event of the service's own, what changes of the state with it, and who waits for that to be written."""

    event: OwnEvent | None
    changed: Mapping[str, Any]
    written: asyncio.Future[None]


class Step:
    """What becomes of a session by all that was ``left`` to be written.

    ``state`` is the one after it, ``lines`` its events, ``frames`` what readers are sent, ``more`` what is written
    beside; ``own_spans`` and ``extras`` are the log's at that moment, which is ``now``.
    """

    def __init__(
        self,
        state: SessionState,
        left: Sequence[AnyEvent | Own],
        own_spans: Sequence[bytes],
        extras: Mapping[str, Any],
        now: float,
    ) -> None:
        self.left = left
        self.own_spans = len(own_spans)
        self.extras = dict(extras)
        self.lines: list[bytes] = []
        self.frames: list[Frame] = []
        self.has_live = False
        self.is_announced = False
        """The live text at its head was passed on to other replicas."""
        self.is_kept = False
        """It is in the store, and was shown."""
        self._number = state.last_event_id
        self._spans = list(own_spans)
        self._decisions: list[Decision] = []
        self._cost_usd = 0.0
        self._state = state
        self._seen_seq = state.seen_seq
        for each in left:
            if isinstance(each, Own):
                self._say(each)
            else:
                self._take(each)
        self.state = replace(
            self._state, last_event_id=self._number, updated_at=now, seen_seq=self._seen_seq, **self.extras
        )
        day = day_of(now) if self._cost_usd else ""
        self.more = Additions(spans=self._spans, decisions=self._decisions, cost_usd=self._cost_usd, day=day)

    def _take(self, event: AnyEvent) -> None:
        """Add what the agent says."""
        self._seen_seq = event.seq or self._seen_seq
        if isinstance(event, CHANGING):
            self._state = after_event(self._state, event, self._number + 1)
        if isinstance(event, TelemetryEvent):
            self._spans.append(relayed(event.data.otlp))
        elif isinstance(event, TextDelta):
            self.has_live = True
            self.frames.append(Frame(None, frame(to_json(event)), after=self._number))
        else:
            self._show(to_json(event))
            if isinstance(event, Result):
                self._cost_usd = total_usd(self._cost_usd, cost_of(event))
            elif (decision := decision_in(event)) is not None:
                self._decisions.append(decision)

    def _say(self, own: Own) -> None:
        """Add what the service says."""
        if own.event is not None:
            self._state = after_own(self._state, own.event)
            data = own.event.data
            self._show(to_json(own.event), is_last=isinstance(data, ClosedData))
            if isinstance(data, ClosedData):
                self._cost_usd = total_usd(self._cost_usd, data.estimated_usd)
        if own.changed:
            self._state = replace(self._state, **own.changed)

    def _show(self, line: bytes, *, is_last: bool = False) -> None:
        self._number += 1
        self.lines.append(line)
        self.frames.append(Frame(self._number, frame(line, self._number), is_last))
