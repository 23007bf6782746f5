"""Queries as PromQL."""

from __future__ import annotations

from typing import NamedTuple

from host_client.telemetry.otlp import ENVIRONMENT

from .metrics import exposed, exposed_label, labels, model_label
from .queries import PRESENT, Current, Increase, OrZero, Quantile, Query, Rate, Series, Share, Top

ZERO = " or vector(0)"


class Range(NamedTuple):
    """The time range of rates and sums, and the selected tenants, models and environments (regular expressions).

    With ``seconds``, the range's length, a rate is the mean of all of it.
    """

    length: str
    seconds: str | None = None
    tenant: str | None = None
    model: str | None = None
    environment: str | None = None


SELECTED = ("$tenant", "$model", "$environment")
OVER_TIME = Range("$__rate_interval", None, *SELECTED)
PER_BAR = Range("$__interval", None, *SELECTED)
TOTAL = Range("$__range", "$__range_s", *SELECTED)
"""In Grafana's own variables: at each moment of the range shown, between two moments, and of all of it."""


def promql(query: Query, over: Range) -> str:
    """Return a query as an expression."""
    match query:
        case Share(part, whole):
            zero = "" if part.by else ZERO  # a split sum has no labels to give the zero
            return f"({promql(part, over)}{zero}) / {promql(whole, over)}"
        case Top(count, of):
            return f"topk({count}, {promql(of, over)})"
        case OrZero(of):
            return f"{promql(of, over)}{ZERO}"
        case Rate(metric, by, where, seconds) if over.seconds is not None:
            return f"{promql(Increase(metric, by, where), over)} * {seconds} / {over.seconds}"
        case Rate(metric, by, _, seconds):
            growth = f"sum{_by(by)}(rate({exposed(metric)}{_selector(query, over)}[{over.length}]))"
            return growth if seconds == 1 else f"{growth} * {seconds}"
        case Increase(metric, by):
            return f"sum{_by(by)}({_growth(exposed(metric) + _selector(query, over), over.length)})"
        case Quantile(q, metric, by):
            buckets = f"rate({exposed(metric, 'bucket')}{_selector(query, over)}[{over.length}])"
            return f"histogram_quantile({q:g}, sum{_by((*by, 'le'))}({buckets}))"
        case Current(metric, by):
            return f"sum{_by(by)}({exposed(metric)}{_selector(query, over)})"


def _growth(counter: str, length: str) -> str:
    """Return the growth of counters, also of those that began within the range.

    ``increase`` leaves out what a counter had when it was first seen: of a user with one turn, all of it.
    """
    begun = f"min_over_time({counter}[{length}]) unless {counter} offset {length}"
    # The label keeps `or` from taking it for the same series.
    return f'increase({counter}[{length}]) or label_replace({begun}, "begun", "1", "", "")'


def _selector(series: Series, over: Range) -> str:
    conditions = [exposed_label(label) + _condition(value) for label, value in series.where]
    if over.tenant is not None and "tenant" in labels(series.metric):
        conditions.append(f'tenant=~"{over.tenant}"')
    if over.model is not None and (label := model_label(series.metric)):
        conditions.append(f'{exposed_label(label)}=~"{over.model}"')
    if over.environment is not None:
        conditions.append(f'{exposed_label(ENVIRONMENT)}=~"{over.environment}"')
    return f"{{{', '.join(conditions)}}}" if conditions else ""


def _condition(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f'=~"{"|".join(value)}"'
    return '!=""' if value == PRESENT else f'="{value}"'


def _by(by: tuple[str, ...]) -> str:
    return f" by ({', '.join(map(exposed_label, by))}) " if by else ""
