"""Dashboards for Grafana, by its own SDK."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

with warnings.catch_warnings():
    # On import it advises a newer layout, which older Grafanas do not take; all take this one.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as models
    from grafana_foundation_sdk.models import dashboard as model

from host_client.telemetry.otlp import ENVIRONMENT

from .layout import Place, placed
from .metrics import exposed, exposed_label
from .panels import COST, Ask, Dashboard, Limits, Panel, Unit
from .promql import OVER_TIME, PER_BAR, TOTAL, promql

COLUMNS = 24
SIZES = {"number": (4, 4), "lines": (12, 8), "bars": (12, 8), "sums": (12, 8), "ranking": (12, 8)}
SHORTEST_BAR = "5m"
"""Minimum time of one bar of a sum: `increase` needs several scrapes in it, which are up to a minute apart."""

UNITS: dict[Unit, str] = {
    "count": "short",
    "per second": "cps",
    "per minute": "cpm",
    "duration": "s",
    "share": "percentunit",
    "usd": "currencyUSD",
    "usd per hour": "currencyUSD",
}
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "sandspan"

Builder = stat.Panel | timeseries.Panel | bargauge.Panel


def grafana_file(page: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana's import takes it."""
    builder = (
        dashboard.Dashboard(page.title)
        .uid(f"sandspan-{page.slug}")
        .description(page.says)
        .tags([TAG])
        .time("now-6h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Sandspan")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("tenant", "Tenant"))
        .with_variable(_variable("model", "Model"))
        .with_variable(_variable("environment", "Environment", exposed_label(ENVIRONMENT)))
    )
    top, number = 0, 0
    for row in page.rows:
        builder.with_row(dashboard.Row(row.title).grid_pos(model.GridPos(h=1, w=COLUMNS, x=0, y=top)))
        places = list(placed((SIZES[panel.kind] for panel in row.panels), COLUMNS, top + 1))
        for panel, place in zip(row.panels, places, strict=True):
            number += 1
            builder.with_panel(_panel(panel, place, number))
        top = max(place.y + place.height for place in places)
    return json.loads(json.dumps(builder.build(), cls=JSONEncoder))


def _variable(name: str, title: str, label: str = "") -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(title)
        .datasource(SOURCE)
        .query(f"label_values({exposed(COST)}, {label or name})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        # Also what has no such label: a series without it has it empty.
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel, place: Place, number: int) -> Builder:
    builder = _BUILDERS[panel.kind](panel)
    builder.id(number).title(panel.title).description(panel.says).datasource(SOURCE).unit(UNITS[panel.unit])
    builder.grid_pos(model.GridPos(h=place.height, w=place.width, x=place.x, y=place.y)).min(0)
    # Errors and drops: nothing of the kind has happened.
    builder.no_value("none").thresholds(_thresholds(panel.limits))
    for ref, ask in zip("ABCDEF", panel.asks, strict=False):
        builder.with_target(_target(panel, ask, ref))
    return builder


def _number(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(models.BigValueGraphMode.NONE)
        .color_mode(models.BigValueColorMode.VALUE if panel.limits else models.BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _lines(_panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(models.LegendDisplayMode.LIST)
    return (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(10)
        .show_points(models.VisibilityMode.AUTO)
        .legend(legend.placement(models.LegendPlacement.BOTTOM).show_legend(show_legend=True))
        .tooltip(common.VizTooltipOptions().mode(models.TooltipDisplayMode.MULTI).sort(models.SortOrder.DESCENDING))
    )


def _bars(panel: Panel) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(models.StackingMode.NORMAL)
    return _lines(panel).draw_style(models.GraphDrawStyle.BARS).fill_opacity(70).stacking(stacking)


def _sums(panel: Panel) -> timeseries.Panel:
    return _bars(panel).interval(SHORTEST_BAR)


def _ranking(_panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .orientation(models.VizOrientation.HORIZONTAL)
        .display_mode(models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


_BUILDERS: dict[str, Callable[[Panel], Builder]] = {
    "number": _number,
    "lines": _lines,
    "bars": _bars,
    "sums": _sums,
    "ranking": _ranking,
}


def _target(panel: Panel, ask: Ask, ref: str) -> prometheus.Dataquery:
    legend = re.sub(r"{([^}]+)}", lambda found: f"{{{{{exposed_label(found[1])}}}}}", ask.legend)
    target = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).legend_format(legend)
    if panel.kind in ("number", "ranking"):
        return target.expr(promql(ask.query, TOTAL)).instant()
    return target.expr(promql(ask.query, PER_BAR if panel.kind == "sums" else OVER_TIME)).range()


def _thresholds(limits: Limits | None) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color="green")]
    if limits:
        steps += [model.Threshold(limits.warning, "yellow"), model.Threshold(limits.critical, "red")]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
