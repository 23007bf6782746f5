"""The table of panels: what each asks, its unit, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .queries import ABSENT, PRESENT, Current, Increase, Labels, OrZero, Quantile, Query, Rate, Share, Top, Where

Kind = Literal["number", "lines", "bars", "sums", "ranking"]
"""Kinds of panels: one value, lines over time, stacked bars of rates, stacked bars that add up, the largest values."""

Unit = Literal["count", "per second", "per minute", "duration", "share", "usd", "usd per hour"]

COST = "claude.agent.cost.usd"
TURN = "claude.agent.duration.ms"
TOOL = "claude.agent.tool.duration.ms"
TOOL_ERRORS = "claude.agent.tool.errors"
ERRORS = "claude.agent.errors.total"
TOKENS = "claude.agent.tokens"
INPUT_TOKENS = "gen_ai.client.inference.operation.input_tokens"
OUTPUT_TOKENS = "gen_ai.client.inference.operation.output_tokens"
REQUEST = "gen_ai.client.inference.duration"
FIRST_CHUNK = "gen_ai.client.inference.time_to_first_chunk"
WAIT = "claude.agent.approval.wait"
APPROVALS = "claude.agent.approvals"
SANDBOX = "claude.agent.sandbox.creation.duration"
ACTIVE = "claude.agent.sessions.active"
EVENTS = "claude.agent.events"
SPANS = "claude.agent.telemetry.spans"

FAILED: Where = (("error.type", PRESENT),)
SUCCEEDED: Where = (("error.type", ABSENT),)
DROPPED: Where = (("outcome", "dropped"),)
MODEL: Labels = ("gen_ai.request.model",)


@dataclass(frozen=True)
class Limits:
    """Thresholds from which a value is a warning or critical."""

    warning: float
    critical: float


@dataclass(frozen=True)
class Ask:
    """A query, and its name in the legend; ``{label}`` stands for a label's value."""

    query: Query
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel of one of the kinds."""

    title: str
    says: str
    kind: Kind
    unit: Unit
    asks: tuple[Ask, ...]
    limits: Limits | None = None

    @property
    def slug(self) -> str:
        """The title as an identifier."""
        return self.title.lower().replace(" ", "-").replace(",", "")


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """A page of rows."""

    slug: str
    title: str
    says: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        """All panels, in order."""
        return [panel for row in self.rows for panel in row.panels]


def number(title: str, says: str, unit: Unit, query: Query, limits: Limits | None = None) -> Panel:
    """Return a panel of one value."""
    return Panel(title, says, "number", unit, (Ask(query, title),), limits)


def percentiles(title: str, says: str, metric: str, by: Labels = (), where: Where = ()) -> Panel:
    """Return a panel of a histogram's median and 95th percentile."""
    suffix = "".join(f" {{{label}}}" for label in by)
    asks = tuple(Ask(Quantile(q, metric, by, where), f"p{round(q * 100)}{suffix}") for q in (0.5, 0.95))
    return Panel(title, says, "lines", "duration", asks)


def split(kind: Kind, title: str, says: str, unit: Unit, query: Query, label: str) -> Panel:
    """Return a panel whose query is split by a label."""
    return Panel(title, says, kind, unit, (Ask(query, f"{{{label}}}"),))


CACHED = Share(Increase(TOKENS, where=(("kind", "cache_read"),)), Increase(TOKENS, where=(("kind", PRESENT),)))
DROPS = number(
    "Spans dropped",
    "Spans that reached no backend, in the range shown. Any is too many: the reasons are below.",
    "count",
    OrZero(Increase(SPANS, where=DROPPED)),
    Limits(1, 100),
)

OVERVIEW = Dashboard(
    "overview",
    "Sandspan: overview",
    "Do agents run, do they fail, are they slow, what do they cost, and does their telemetry arrive?",
    (
        Row(
            "Now",
            (
                number("Sessions", "Sessions under way.", "count", OrZero(Current(ACTIVE))),
                number("Turns", "Turns that ended in the range shown.", "count", OrZero(Increase(TURN))),
                number(
                    "Failed turns",
                    "Share of the turns in the range shown that ended in an error.",
                    "share",
                    Share(Increase(TURN, where=FAILED), Increase(TURN)),
                    Limits(0.05, 0.2),
                ),
                number("Cost", "US dollars in the range shown.", "usd", Increase(COST)),
                number(
                    "Waited for a person p95",
                    "Time that approvals and questions waited for an answer.",
                    "duration",
                    Quantile(0.95, WAIT),
                ),
                DROPS,
            ),
        ),
        Row(
            "Errors",
            (
                split(
                    "bars",
                    "Errors by type",
                    "Errors of agents, runners and sessions. sandbox, cli_crash and out_of_memory: a session was lost.",
                    "per minute",
                    Rate(ERRORS, ("error.type",), seconds=60),
                    "error.type",
                ),
                split(
                    "bars",
                    "Failed tool calls by type",
                    "Calls that failed, were refused or had no answer in time.",
                    "per minute",
                    Rate(TOOL_ERRORS, ("error.type",), seconds=60),
                    "error.type",
                ),
            ),
        ),
        Row(
            "Durations",
            (
                percentiles("Model requests", "One request to the model, to the end of its answer.", REQUEST),
                percentiles("Time to first chunk", "From a request to the first of the model's answer.", FIRST_CHUNK),
                percentiles("Tool calls", "Execution alone, without the wait for a person.", TOOL),
                percentiles("Turns by duration", "From prompt to result, with the waits for a person.", TURN),
                percentiles("Sandbox creation", "From asking for a sandbox to having it.", SANDBOX, ("sandbox.kind",)),
                split(
                    "bars",
                    "Turns by model",
                    "Turns that ended, by the session's model.",
                    "per minute",
                    Rate(TURN, ("model",), seconds=60),
                    "model",
                ),
            ),
        ),
        Row(
            "Stream and telemetry",
            (
                split(
                    "bars",
                    "Events by type",
                    "Events that sandboxes streamed.",
                    "per second",
                    Rate(EVENTS, ("type",)),
                    "type",
                ),
                Panel(
                    "Spans by exporter",
                    "Exported is well. Spooled: the backend is down and spans wait on disk. Dropped: they are lost.",
                    "lines",
                    "per second",
                    (Ask(Rate(SPANS, ("exporter", "outcome")), "{exporter} {outcome}"),),
                ),
                split(
                    "ranking",
                    "Drops by reason",
                    "Why spans were dropped in the range shown.",
                    "count",
                    Top(10, Increase(SPANS, ("reason",), DROPPED)),
                    "reason",
                ),
            ),
        ),
    ),
)

COSTS = Dashboard(
    "cost",
    "Sandspan: cost",
    "What agents cost, for whom and why. Every turn counts, sampled or not; `host_client costs` has it to the cent.",
    (
        Row(
            "In this range",
            (
                number("Cost", "US dollars in the range shown.", "usd", Increase(COST)),
                number(
                    "Cost an hour",
                    "US dollars that models cost in an hour, on average of the range shown.",
                    "usd per hour",
                    Rate(COST, seconds=3600),
                ),
                number(
                    "Cost a turn",
                    "US dollars, the mean of the turns in the range shown.",
                    "usd",
                    Share(Increase(COST), Increase(TURN)),
                ),
                number("Tokens", "Of all kinds, in the range shown.", "count", Increase(TOKENS)),
                number(
                    "Read from cache",
                    "Share of all tokens that came from the prompt cache, which costs a tenth or less.",
                    "share",
                    CACHED,
                ),
                number("Turns", "Turns that ended in the range shown.", "count", OrZero(Increase(TURN))),
            ),
        ),
        Row(
            "Where it goes",
            (
                split("sums", "Cost by model", "US dollars in each bar.", "usd", Increase(COST, ("model",)), "model"),
                split(
                    "sums",
                    "Cost by tenant over time",
                    "US dollars in each bar, of the ten that cost most.",
                    "usd",
                    Top(10, Increase(COST, ("tenant",))),
                    "tenant",
                ),
                split(
                    "ranking",
                    "Tenants by cost",
                    "US dollars in the range shown.",
                    "usd",
                    Top(20, Increase(COST, ("tenant",))),
                    "tenant",
                ),
                split(
                    "ranking",
                    "Users by cost",
                    "US dollars in the range shown. Past the limit (SANDSPAN_USER_LABEL_LIMIT) users are `other`.",
                    "usd",
                    Top(20, Increase(COST, ("user",))),
                    "user",
                ),
                split(
                    "ranking",
                    "Tiers by cost",
                    "US dollars in the range shown.",
                    "usd",
                    Top(10, Increase(COST, ("tier",))),
                    "tier",
                ),
            ),
        ),
        Row(
            "Tokens",
            (
                split(
                    "bars",
                    "Tokens by kind",
                    "As they are billed: input leaves the cached ones out.",
                    "per minute",
                    Rate(TOKENS, ("kind",), seconds=60),
                    "kind",
                ),
                split(
                    "bars",
                    "Tokens by model",
                    "Of all kinds.",
                    "per minute",
                    Rate(TOKENS, ("model",), seconds=60),
                    "model",
                ),
                split(
                    "lines",
                    "Read from cache by model",
                    "Share of all tokens that came from the prompt cache. A fall makes a rise in cost.",
                    "share",
                    Share(
                        Rate(TOKENS, ("model",), (("kind", "cache_read"),)),
                        Rate(TOKENS, ("model",)),
                    ),
                    "model",
                ),
                Panel(
                    "Tokens a request",
                    "Of one request to the model, cached ones included.",
                    "lines",
                    "count",
                    (
                        Ask(Quantile(0.5, INPUT_TOKENS, where=SUCCEEDED), "p50 input"),
                        Ask(Quantile(0.95, INPUT_TOKENS, where=SUCCEEDED), "p95 input"),
                        Ask(Quantile(0.5, OUTPUT_TOKENS, where=SUCCEEDED), "p50 output"),
                        Ask(Quantile(0.95, OUTPUT_TOKENS, where=SUCCEEDED), "p95 output"),
                    ),
                ),
            ),
        ),
    ),
)

TOOLS = Dashboard(
    "tools",
    "Sandspan: tools",
    "Which tools agents call, how long they take, and which fail. Past a hundred names the rest is `other`.",
    (
        Row(
            "In this range",
            (
                number("Calls", "Calls of all tools in the range shown.", "count", OrZero(Increase(TOOL))),
                number(
                    "Failed calls",
                    "Share of the calls in the range shown that failed or were refused.",
                    "share",
                    Share(Increase(TOOL_ERRORS), Increase(TOOL)),
                    Limits(0.1, 0.3),
                ),
                number(
                    "Duration p50", "Execution alone, without the wait for a person.", "duration", Quantile(0.5, TOOL)
                ),
                number(
                    "Duration p95", "Execution alone, without the wait for a person.", "duration", Quantile(0.95, TOOL)
                ),
                number(
                    "Refused",
                    "Calls that a person or a rule denied, in the range shown.",
                    "count",
                    OrZero(Increase(TOOL_ERRORS, where=(("error.type", "permission_denied"),))),
                ),
                number(
                    "No answer in time",
                    "Calls that were given up because nobody answered, in the range shown.",
                    "count",
                    OrZero(Increase(TOOL_ERRORS, where=(("error.type", "approval_timeout"),))),
                    Limits(1, 10),
                ),
            ),
        ),
        Row(
            "By tool",
            (
                split(
                    "bars",
                    "Calls by tool",
                    "Calls that ended.",
                    "per minute",
                    Rate(TOOL, ("tool",), seconds=60),
                    "tool",
                ),
                split(
                    "bars",
                    "Failures by tool",
                    "Calls that failed or were refused.",
                    "per minute",
                    Rate(TOOL_ERRORS, ("tool",), seconds=60),
                    "tool",
                ),
                split(
                    "lines",
                    "Duration p95 by tool",
                    "Execution alone, without the wait for a person.",
                    "duration",
                    Quantile(0.95, TOOL, ("tool",)),
                    "tool",
                ),
                Panel(
                    "Failures by type",
                    "tool_error: the tool said so. permission_denied: a person or a rule did.",
                    "bars",
                    "per minute",
                    (Ask(Rate(TOOL_ERRORS, ("tool", "error.type"), seconds=60), "{tool} {error.type}"),),
                ),
                split(
                    "ranking", "Most called", "In the range shown.", "count", Top(20, Increase(TOOL, ("tool",))), "tool"
                ),
                split(
                    "ranking",
                    "Most failures",
                    "In the range shown.",
                    "count",
                    Top(20, Increase(TOOL_ERRORS, ("tool",))),
                    "tool",
                ),
            ),
        ),
    ),
)

APPROVAL = Dashboard(
    "approvals",
    "Sandspan: approvals",
    "Are people asked too often, do they answer, and how long do agents wait for them?",
    (
        Row(
            "In this range",
            (
                number(
                    "Asked",
                    "Approvals asked for in the range shown.",
                    "count",
                    OrZero(Increase(EVENTS, where=(("type", "approval_request"),))),
                ),
                number(
                    "Ended",
                    "Approvals and questions that ended in the range shown.",
                    "count",
                    OrZero(Increase(APPROVALS)),
                ),
                number(
                    "Allowed",
                    "Share of what ended that was allowed as it was. Near 1: a rule might do.",
                    "share",
                    Share(Increase(APPROVALS, where=(("decision", "allow"),)), Increase(APPROVALS)),
                ),
                number(
                    "No answer in time",
                    "Share of what ended that nobody answered in time.",
                    "share",
                    Share(Increase(APPROVALS, where=(("decision", "timeout"),)), Increase(APPROVALS)),
                    Limits(0.05, 0.2),
                ),
                number("Wait p50", "Until an answer came.", "duration", Quantile(0.5, WAIT)),
                number("Wait p95", "Until an answer came.", "duration", Quantile(0.95, WAIT)),
            ),
        ),
        Row(
            "Over time",
            (
                split(
                    "bars",
                    "Decisions",
                    "How approvals and questions ended.",
                    "per minute",
                    Rate(APPROVALS, ("decision",), seconds=60),
                    "decision",
                ),
                percentiles("Wait by decision", "Until an answer came, or the time was up.", WAIT, ("decision",)),
                Panel(
                    "Asked and ended",
                    "Where more is asked than ends, people fall behind.",
                    "lines",
                    "per minute",
                    (
                        Ask(Rate(EVENTS, where=(("type", "approval_request"),), seconds=60), "asked"),
                        Ask(Rate(EVENTS, where=(("type", "approval_resolved"),), seconds=60), "ended"),
                    ),
                ),
                split(
                    "bars",
                    "Approvals by tool",
                    "Which tools people are asked about.",
                    "per minute",
                    Rate(APPROVALS, ("tool",), seconds=60),
                    "tool",
                ),
                split(
                    "ranking",
                    "Tenants by approvals",
                    "In the range shown.",
                    "count",
                    Top(20, Increase(APPROVALS, ("tenant",))),
                    "tenant",
                ),
                split(
                    "ranking",
                    "Who decided",
                    "People, and the policies and functions that answer for them, in the range shown.",
                    "count",
                    Top(20, Increase(APPROVALS, ("decided_by",), (("decided_by", PRESENT),))),
                    "decided_by",
                ),
                split(
                    "ranking",
                    "Denied by tool",
                    "In the range shown.",
                    "count",
                    Top(20, Increase(APPROVALS, ("tool",), (("decision", "deny"),))),
                    "tool",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, COSTS, TOOLS, APPROVAL)
