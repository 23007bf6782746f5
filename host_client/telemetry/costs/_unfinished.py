"""What turns without a result have spent, as far as their model requests were told. Pure.

A runner that is killed tells no result; the spans of its requests that had ended are here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_runner.contract.protocol import AnyEvent, Error, Result, Start, TurnStart
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.turns import MAX_MODELS, UNKNOWN, ModelCost, Request, TurnCost, merged, priced, request_of

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan

MAX_TURNS = 1000
"""Limit of turns of one session that are known at a time: forged ones must not fill the memory."""

MAX_UNPRICED = 1000
"""Most requests whose price waits to be asked for: nearly every turn has a result, and then nobody asks."""

TELLING = frozenset({Start, TurnStart, Error, Result})
"""What `Spending.observe` is told; the rest says nothing of it."""


class Unfinished(NamedTuple):
    """A turn that began and had no result: its span's ids, its number and what is known of its cost."""

    trace_id: str
    span_id: str
    turn: int
    figures: TurnCost


@dataclass(slots=True)
class _Open:
    turn: int
    trace_id: str
    parts: list[ModelCost] = field(default_factory=list[ModelCost])

    def add(self, part: ModelCost) -> None:
        """Sum up by model, so that as many are kept as there are models."""
        if len(self.parts) >= MAX_MODELS and all(each.model != part.model for each in self.parts):
            part = part._replace(model=UNKNOWN)
        self.parts = merged([*self.parts, part])


def parent_of_request(span: EndedSpan) -> str | None:
    """Return the id of the span above a model request, in hex; None for any other span."""
    return span.parent_span_id if span.attributes.get("gen_ai.operation.name") == "chat" else None


class Spending:
    """What the turns of one session have spent so far; ``model`` and ``error_type`` are the last that it told.

    ``calls`` are the session's; the caller feeds them.
    """

    def __init__(self, calls: ToolCalls) -> None:
        self.calls = calls
        self.model: str | None = None
        self.error_type: str | None = None
        self._turns: dict[str, _Open] = {}
        self._unpriced: list[tuple[str, Request]] = []

    def observe(self, event: AnyEvent) -> None:
        """Take note of a turn that begins or ends, and of why it failed."""
        match event:
            case Start():
                self.model = event.data.model
            case TurnStart() if len(self._turns) < MAX_TURNS:
                self._turns[event.span_id] = _Open(event.data.turn, event.trace_id)
            case Error():
                self.error_type = event.data.error_type
            case Result():
                self._turns.pop(event.span_id, None)
                if not self._turns:
                    self._unpriced.clear()
            case _:
                pass

    def request(self, parent_span_id: str, attributes: Mapping[str, Any]) -> bool:
        """Add a model request under a turn or a subagent's call; return whether its turn is unfinished."""
        turn_span_id = self.calls.turn_of(parent_span_id)
        if turn_span_id not in self._turns:
            return False
        self._unpriced.append((turn_span_id, request_of(attributes)))
        if len(self._unpriced) >= MAX_UNPRICED:
            self._price()
        return True

    def _price(self) -> None:
        """Add what waits to the turns that are still without a result."""
        for span_id, request in self._unpriced:
            if (of := self._turns.get(span_id)) is not None:
                of.add(priced(request))
        self._unpriced.clear()

    def so_far(self) -> Iterator[Unfinished]:
        """Yield the turns that have no result and did spend something."""
        self._price()
        for span_id, of in self._turns.items():
            if of.parts:
                nano = sum(part.nano for part in of.parts)
                yield Unfinished(of.trace_id, span_id, of.turn, TurnCost(nano, tuple(of.parts), True))
