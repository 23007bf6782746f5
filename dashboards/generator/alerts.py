"""Rules that page somebody, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from .panels import APPROVALS, DROPPED, ERRORS, FAILED, SPANS, TURN
from .promql import Range, promql
from .queries import Increase, Query, Share

TEN_MINUTES = Range("10m")
QUARTER = Range("15m")
LOST = ("sandbox", "cli_crash", "out_of_memory")
"""Error types of sessions that were lost through no fault of their user."""


@dataclass(frozen=True)
class Alert:
    """A rule that fires when an expression has held for a time; alert managers route it by ``severity``."""

    name: str
    expression: str
    holds: str
    severity: str
    summary: str
    description: str


def _above(query: Query, over: Range, limit: float) -> str:
    return f"{promql(query, over)} > {limit:g}"


ALERTS = (
    Alert(
        "SandspanSessionsLost",
        _above(Increase(ERRORS, ("error.type",), (("error.type", LOST),)), TEN_MINUTES, 0),
        "0m",
        "page",
        "Sessions are lost: {{ $labels.error_type }}",
        "{{ $value | humanize }} in 10 minutes. Look at the sandboxes' provider, then at the sessions' traces.",
    ),
    Alert(
        "SandspanTurnsFail",
        _above(Share(Increase(TURN, where=FAILED), Increase(TURN)), QUARTER, 0.2),
        "5m",
        "page",
        "{{ $value | humanizePercentage }} of turns fail",
        "Of the turns that ended in the last 15 minutes. The panel `Errors by type` says why.",
    ),
    Alert(
        "SandspanTelemetryDropped",
        _above(Increase(SPANS, ("exporter", "reason"), DROPPED), TEN_MINUTES, 0),
        "0m",
        "page",
        "Spans for {{ $labels.exporter }} are dropped: {{ $labels.reason }}",
        "{{ $value | humanize }} spans in 10 minutes reached no backend and will not.",
    ),
    Alert(
        "SandspanTelemetrySpools",
        _above(Increase(SPANS, ("exporter",), (("outcome", "spooled"),)), TEN_MINUTES, 0),
        "30m",
        "ticket",
        "{{ $labels.exporter }} has taken no spans for half an hour",
        "Spans wait on disk. They are dropped when SANDSPAN_SPOOL_MAX_BYTES is reached.",
    ),
    Alert(
        "SandspanApprovalsTimeOut",
        _above(Share(Increase(APPROVALS, where=(("decision", "timeout"),)), Increase(APPROVALS)), QUARTER, 0.2),
        "15m",
        "ticket",
        "{{ $value | humanizePercentage }} of approvals have no answer in time",
        "Agents wait for people who do not come.",
    ),
)


def alerts_file() -> str:
    """Return the rules as YAML."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.holds,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.description},
        }
        for alert in ALERTS
    ]
    groups = {"groups": [{"name": "sandspan", "rules": rules}]}
    return yaml.safe_dump(groups, sort_keys=False, width=1000)
