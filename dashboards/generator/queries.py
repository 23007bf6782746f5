"""What a panel asks: values that each backend's module puts into its own language.

A metric is named as its instrument is (``claude.agent.cost.usd``), a label as its attribute is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ABSENT: Final = ""
"""Label value that selects series without the label."""

PRESENT: Final = "*"
"""Label value that selects any value except an absent label."""

Labels = tuple[str, ...]
Where = tuple[tuple[str, str | tuple[str, ...]], ...]
"""Labels and their required values; a tuple lists alternatives."""


@dataclass(frozen=True)
class Rate:
    """How fast a counter grows, per ``seconds``; of a histogram, how many values it takes in."""

    metric: str
    by: Labels = ()
    where: Where = ()
    seconds: int = 1


@dataclass(frozen=True)
class Increase:
    """By how much a counter grew in the range that is shown; of a histogram, how many values it took in."""

    metric: str
    by: Labels = ()
    where: Where = ()


@dataclass(frozen=True)
class Quantile:
    """The value that a share ``q`` of a histogram's values stays below."""

    q: float
    metric: str
    by: Labels = ()
    where: Where = ()


@dataclass(frozen=True)
class Current:
    """What an up-down counter says now."""

    metric: str
    by: Labels = ()
    where: Where = ()


Sum = Rate | Increase | Current
Series = Sum | Quantile


@dataclass(frozen=True)
class Share:
    """One sum over another, 0 as long as the part has not been counted; split alike."""

    part: Rate | Increase
    whole: Rate | Increase


@dataclass(frozen=True)
class Top:
    """The largest few of what a query finds."""

    count: int
    of: Sum


@dataclass(frozen=True)
class OrZero:
    """A sum, 0 as long as nothing has been counted."""

    of: Sum


Query = Series | Share | Top | OrZero


def series_of(query: Query) -> tuple[Series, ...]:
    """Return what a query reads, in order."""
    match query:
        case Share(part, whole):
            return part, whole
        case Top(_, of) | OrZero(of):
            return (of,)
        case _:
            return (query,)
