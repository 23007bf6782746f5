"""Langfuse's dashboards, in the format of its import. Its data are spans: of the traces that were kept, no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .layout import placed

Json = dict[str, Any]
Chart = Literal["NUMBER", "LINE_TIME_SERIES", "BAR_TIME_SERIES", "HORIZONTAL_BAR"]

COLUMNS = 12
SIZES = {"NUMBER": (3, 3), "LINE_TIME_SERIES": (6, 5), "BAR_TIME_SERIES": (6, 5), "HORIZONTAL_BAR": (6, 6)}
TURNS: Json = {"column": "name", "operator": "any of", "type": "stringOptions", "value": ["agent.execute"]}
REQUESTS: Json = {"column": "type", "operator": "any of", "type": "stringOptions", "value": ["GENERATION"]}
TOOLS = {**REQUESTS, "value": ["TOOL"]}
FAILED: Json = {"column": "level", "operator": "any of", "type": "stringOptions", "value": ["ERROR"]}
KEPT = "Of the traces that sampling kept; `host_client costs` has the exact sums."


@dataclass(frozen=True)
class Widget:
    """A measure of observations, aggregated; ``by`` splits it, and charts without time show the largest ``rows``."""

    name: str
    says: str
    chart: Chart
    measure: str
    aggregation: str
    of: tuple[Json, ...] = ()
    by: str | None = None
    rows: int = 20


@dataclass(frozen=True)
class Dashboard:
    """A page of widgets, laid out row by row."""

    slug: str
    title: str
    says: str
    widgets: tuple[Widget, ...]


DASHBOARDS = (
    Dashboard(
        "overview",
        "Sandspan: overview",
        "What agents do and how well it goes. Langfuse sees the traces that sampling kept.",
        (
            Widget("sessions", "Sessions with a kept trace.", "NUMBER", "uniqueSessionIds", "uniq"),
            Widget("turns", "Turns of the agent.", "NUMBER", "count", "count", (TURNS,)),
            Widget("failed turns", "Turns that ended in an error.", "NUMBER", "count", "count", (TURNS, FAILED)),
            Widget("users", "Users with a kept trace.", "NUMBER", "uniqueUserIds", "uniq"),
            Widget(
                "turns by outcome", "Level ERROR: it failed.", "BAR_TIME_SERIES", "count", "count", (TURNS,), "level"
            ),
            Widget(
                "turn duration p95",
                "From prompt to answer, with the waits for a person.",
                "LINE_TIME_SERIES",
                "latency",
                "p95",
                (TURNS,),
            ),
            Widget(
                "model latency p95",
                "One request to the model, first byte to last.",
                "LINE_TIME_SERIES",
                "latency",
                "p95",
                (REQUESTS,),
                "providedModelName",
            ),
            Widget(
                "failed requests",
                "Requests to the model that failed.",
                "BAR_TIME_SERIES",
                "count",
                "count",
                (REQUESTS, FAILED),
                "providedModelName",
            ),
        ),
    ),
    Dashboard(
        "cost",
        "Sandspan: cost",
        f"What agents cost, and for whom. {KEPT}",
        (
            Widget("cost", f"US dollars. {KEPT}", "NUMBER", "totalCost", "sum", (REQUESTS,)),
            Widget("tokens", f"All kinds. {KEPT}", "NUMBER", "totalTokens", "sum", (REQUESTS,)),
            Widget("cost of a request p95", "US dollars.", "NUMBER", "totalCost", "p95", (REQUESTS,)),
            Widget("requests", "Requests to a model.", "NUMBER", "count", "count", (REQUESTS,)),
            Widget(
                "cost by model",
                f"US dollars. {KEPT}",
                "BAR_TIME_SERIES",
                "totalCost",
                "sum",
                (REQUESTS,),
                "providedModelName",
            ),
            Widget(
                "tokens by kind",
                "As Langfuse stores them; `total` is the sum of the others.",
                "HORIZONTAL_BAR",
                "usageByType",
                "sum",
                (REQUESTS,),
                "usageType",
            ),
            Widget("users by cost", f"US dollars. {KEPT}", "HORIZONTAL_BAR", "totalCost", "sum", (REQUESTS,), "userId"),
            Widget(
                "sessions by cost",
                f"US dollars. {KEPT}",
                "HORIZONTAL_BAR",
                "totalCost",
                "sum",
                (REQUESTS,),
                "sessionId",
            ),
        ),
    ),
    Dashboard(
        "tools",
        "Sandspan: tools",
        "Which tools agents call, how long they take, and which fail. A call's time holds the wait for a person.",
        (
            Widget("tool calls", "Calls of all tools.", "NUMBER", "count", "count", (TOOLS,)),
            Widget(
                "failed tool calls", "Calls that failed or were denied.", "NUMBER", "count", "count", (TOOLS, FAILED)
            ),
            Widget("tool duration p50", "Milliseconds.", "NUMBER", "latency", "p50", (TOOLS,)),
            Widget("tool duration p95", "Milliseconds.", "NUMBER", "latency", "p95", (TOOLS,)),
            Widget("calls by tool", "Most called first.", "HORIZONTAL_BAR", "count", "count", (TOOLS,), "name"),
            Widget("duration p95 by tool", "Slowest first.", "HORIZONTAL_BAR", "latency", "p95", (TOOLS,), "name"),
            Widget("failures by tool", "Most first.", "BAR_TIME_SERIES", "count", "count", (TOOLS, FAILED), "name"),
            Widget("calls over time", "By tool.", "BAR_TIME_SERIES", "count", "count", (TOOLS,), "name"),
        ),
    ),
)


def langfuse_file(dashboard: Dashboard) -> Json:
    """Return a dashboard as Langfuse's import takes it."""
    places = placed((SIZES[widget.chart] for widget in dashboard.widgets), COLUMNS)
    return {
        "$langfuseDashboard": True,
        "version": 1,
        "name": dashboard.title,
        "description": dashboard.says,
        "filters": [],
        "widgets": [
            {
                "type": "widget",
                "x": place.x,
                "y": place.y,
                "x_size": place.width,
                "y_size": place.height,
                "widget": _widget(dashboard, widget),
            }
            for place, widget in zip(places, dashboard.widgets, strict=True)
        ],
    }


def _widget(dashboard: Dashboard, widget: Widget) -> Json:
    config: Json = {"type": widget.chart}
    if widget.chart == "HORIZONTAL_BAR":
        config["row_limit"] = widget.rows
    return {
        "$langfuseWidget": True,
        "version": 1,
        # The dashboard's name makes it the only one of its name in the project.
        "name": f"{dashboard.title}: {widget.name}",
        "description": widget.says,
        "view": "observations",
        "dimensions": [{"field": widget.by}] if widget.by else [],
        "metrics": [{"measure": widget.measure, "agg": widget.aggregation}],
        "filters": list(widget.of),
        "chartType": widget.chart,
        "chartConfig": config,
        "minVersion": 2,
    }
