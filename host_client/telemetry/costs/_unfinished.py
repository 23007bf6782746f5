"""Estimate the cost of turns that have no result, from their model requests. Pure.

A runner that is killed sends no result, but it has sent the spans of the requests that ended before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_runner.contract.protocol import AnyEvent, Error, Result, Start, TurnStart
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.turns import MAX_MODELS, UNKNOWN, ModelCost, TurnCost, merged, priced, request_of

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan

MAX_TURNS = 1000
"""Maximum number of unfinished turns of one session: forged events must not fill the host's memory."""

TELLING = frozenset({Start, TurnStart, Error, Result})
"""The types of events that `Spending.observe` reads."""


class Unfinished(NamedTuple):
    """A turn without a result: the ids of its span, its number and its estimated cost."""

    trace_id: str
    span_id: str
    turn: int
    figures: TurnCost


@dataclass(slots=True)
class _OpenTurn:
    number: int
    trace_id: str
    parts: list[ModelCost] = field(default_factory=list[ModelCost])

    def add(self, part: ModelCost) -> None:
        """Add a request's cost to its model; models beyond `MAX_MODELS` share one entry."""
        if len(self.parts) >= MAX_MODELS and all(each.model != part.model for each in self.parts):
            part = part._replace(model=UNKNOWN)
        self.parts = merged([*self.parts, part])


def parent_of_request(span: EndedSpan) -> str | None:
    """Return the parent span's id of a model request, in hex; None for any other span."""
    return span.parent_span_id if span.attributes.get("gen_ai.operation.name") == "chat" else None


class Spending:
    """Estimate the cost of one session's unfinished turns.

    ``calls`` are the session's tool calls, which the caller feeds. ``model`` and ``error_type`` are the last that the
    session's events named.
    """

    def __init__(self, calls: ToolCalls) -> None:
        self.calls = calls
        self.model: str | None = None
        self.error_type: str | None = None
        self._turns: dict[str, _OpenTurn] = {}

    def observe(self, event: AnyEvent) -> None:
        """Take note of the session's model, of a turn that begins or ends, and of an error."""
        match event:
            case Start():
                self.model = event.data.model
            case TurnStart() if len(self._turns) < MAX_TURNS:
                self._turns[event.span_id] = _OpenTurn(event.data.turn, event.trace_id)
            case Error():
                self.error_type = event.data.error_type
            case Result():
                self._turns.pop(event.span_id, None)
            case _:
                pass

    def request(self, parent_span_id: str, attributes: Mapping[str, Any]) -> bool:
        """Add a model request, whose parent is a turn or a subagent's call; return whether its turn is unfinished."""
        turn = self._turns.get(self.calls.turn_of(parent_span_id))
        if turn is not None:
            turn.add(priced(request_of(attributes)))
        return turn is not None

    def so_far(self) -> Iterator[Unfinished]:
        """Yield the unfinished turns that had a model request."""
        for span_id, turn in self._turns.items():
            if turn.parts:
                nano = sum(part.nano for part in turn.parts)
                yield Unfinished(turn.trace_id, span_id, turn.number, TurnCost(nano, tuple(turn.parts)))
