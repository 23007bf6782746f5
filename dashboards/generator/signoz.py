"""Dashboards for SigNoz: schema v6, panels asked by its query builder."""

from __future__ import annotations

from typing import Any

from host_client.telemetry.otlp import ENVIRONMENT

from .layout import placed
from .metrics import is_histogram, labels, model_label, unit
from .panels import Ask, Dashboard, Limits, Panel, Unit
from .queries import ABSENT, PRESENT, Current, Increase, OrZero, Quantile, Rate, Series, Share, Top, series_of

Json = dict[str, Any]

COLUMNS = 12
SIZES = {"number": (2, 3), "lines": (6, 6), "bars": (6, 6), "sums": (6, 6), "ranking": (6, 6)}
KINDS = {
    "number": "signoz/NumberPanel",
    "lines": "signoz/TimeSeriesPanel",
    "bars": "signoz/BarChartPanel",
    "sums": "signoz/BarChartPanel",
    "ranking": "signoz/TablePanel",
}
SCALAR = ("number", "ranking")
UNITS: dict[Unit, str] = {
    "count": "short",
    "per second": "cps",
    "per minute": "cpm",
    "share": "percentunit",
    "usd": "none",  # it has no currencies
    "usd per hour": "none",
}
MOST_GROUPS = 50


def signoz_file(page: Dashboard) -> Json:
    """Return a dashboard as SigNoz's import takes it."""
    return {
        "schemaVersion": "v6",
        "name": f"sandspan-{page.slug}",
        "tags": [{"key": "tag", "value": "sandspan"}],
        "spec": {
            "display": {"name": page.title, "description": page.says},
            "variables": [
                _variable("tenant", "Tenant"),
                _variable("model", "Model"),
                _variable("environment", "Environment", ENVIRONMENT),
            ],
            "panels": {panel.slug: _panel(panel) for panel in page.panels},
            "layouts": [_layout(row.title, row.panels) for row in page.rows],
        },
    }


def _variable(name: str, title: str, attribute: str = "") -> Json:
    return {
        "kind": "ListVariable",
        "spec": {
            "name": name,
            "display": {"name": title, "description": ""},
            "allowMultiple": True,
            "allowAllValue": True,
            "sort": "alphabetical-asc",
            "plugin": {"kind": "signoz/DynamicVariable", "spec": {"name": attribute or name, "signal": "metrics"}},
        },
    }


def _layout(title: str, panels: tuple[Panel, ...]) -> Json:
    places = placed((SIZES[panel.kind] for panel in panels), COLUMNS)
    items = [
        {**place._asdict(), "content": {"$ref": f"#/spec/panels/{panel.slug}"}}
        for place, panel in zip(places, panels, strict=True)
    ]
    return {
        "kind": "Grid",
        "spec": {"display": {"title": title, "collapse": {"open": True}}, "items": items},
    }


def _panel(panel: Panel) -> Json:
    return {
        "kind": "Panel",
        "spec": {
            "display": {"name": panel.title, "description": panel.says},
            "plugin": {"kind": KINDS[panel.kind], "spec": _appearance(panel)},
            "queries": [
                {
                    "kind": "scalar" if panel.kind in SCALAR else "time_series",
                    "spec": {
                        "name": "A",
                        "plugin": {"kind": "signoz/CompositeQuery", "spec": {"queries": _queries(panel)}},
                    },
                }
            ],
        },
    }


def _appearance(panel: Panel) -> Json:
    shown = _unit(panel)
    match panel.kind:
        case "number":
            return {
                "formatting": {"unit": shown, "decimalPrecision": "2"},
                "thresholds": _thresholds(panel.limits),
            }
        case "ranking":
            return {"formatting": {"columnUnits": {"A": shown}, "decimalPrecision": "2"}}
        case _:
            return {
                "formatting": {"unit": shown, "decimalPrecision": "2"},
                "legend": {"position": "bottom"},
                **({"visualization": {"stackedBarChart": True}} if panel.kind in ("bars", "sums") else {}),
            }


def _unit(panel: Panel) -> str:
    if panel.unit == "duration":
        return unit(series_of(panel.asks[0].query)[0].metric)
    return UNITS[panel.unit]


def _thresholds(limits: Limits | None) -> list[Json]:
    if limits is None:
        return []
    return [
        {"value": value, "color": color, "operator": "above_or_equal", "format": "text"}
        for value, color in ((limits.warning, "orange"), (limits.critical, "red"))
    ]


def _queries(panel: Panel) -> list[Json]:
    """Return the builder's queries, named A, B, … with a formula F1, F2, … after those it is made of."""
    found: list[Json] = []
    names = iter("ABCDEFGH")
    for number, ask in enumerate(panel.asks, start=1):
        series = series_of(ask.query)
        used = [next(names) for _ in series]
        formula = _formula(ask, used)
        for name, each in zip(used, series, strict=True):
            found.append({"type": "builder_query", "spec": _query(name, each, ask, is_part=formula is not None)})
        if formula is not None:
            spec = {"name": f"F{number}", "expression": formula, "legend": _legend(ask)}
            found.append({"type": "builder_formula", "spec": spec})
    return found


def _formula(ask: Ask, names: list[str]) -> str | None:
    match ask.query:
        case Share():
            return f"{names[0]} / {names[1]}"
        case Rate(seconds=seconds) | Top(of=Rate(seconds=seconds)) | OrZero(of=Rate(seconds=seconds)) if seconds != 1:
            return f"{names[0]} * {seconds}"
        case _:
            return None


def _query(name: str, series: Series, ask: Ask, *, is_part: bool) -> Json:
    aggregation = _aggregation(series)
    value = f"{aggregation['spaceAggregation']}({aggregation['timeAggregation']}({aggregation['metricName']}))"
    return {
        "name": name,
        "signal": "metrics",
        "aggregations": [aggregation],
        "filter": {"expression": _filter(series)},
        "groupBy": [
            {"name": label, "fieldContext": "attribute", "fieldDataType": "string", "signal": "metrics"}
            for label in series.by
        ],
        # Formulas take all their parts; only what is shown is cut.
        **({} if is_part else _limit(ask, value)),
        "disabled": is_part,
        "legend": _legend(ask),
    }


def _limit(ask: Ask, value: str) -> Json:
    count = ask.query.count if isinstance(ask.query, Top) else MOST_GROUPS
    return {"limit": count, "order": [{"key": {"name": value}, "direction": "desc"}]}


def _aggregation(series: Series) -> Json:
    match series:
        case Quantile(q, metric):
            return _aggregated(f"{metric}.bucket", "", f"p{round(q * 100)}", "avg")
        case Rate(metric):
            return _aggregated(_counted(metric), "rate", "sum", "avg")
        case Increase(metric):
            return _aggregated(_counted(metric), "increase", "sum", "sum")
        case Current(metric):
            return _aggregated(metric, "latest", "sum", "last")


def _aggregated(metric: str, over_time: str, over_space: str, reduce_to: str) -> Json:
    return {
        "metricName": metric,
        "temporality": "",
        "timeAggregation": over_time,
        "spaceAggregation": over_space,
        "reduceTo": reduce_to,
    }


def _counted(metric: str) -> str:
    return f"{metric}.count" if is_histogram(metric) else metric


def _filter(series: Series) -> str:
    conditions = [f"{label} {_condition(value)}" for label, value in series.where]
    if "tenant" in labels(series.metric):
        conditions.append("tenant IN $tenant")
    if label := model_label(series.metric):
        conditions.append(f"{label} IN $model")
    conditions.append(f"{ENVIRONMENT} IN $environment")
    return " AND ".join(conditions)


def _condition(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"IN ({', '.join(map(repr, value))})"
    return {PRESENT: "EXISTS", ABSENT: "NOT EXISTS"}.get(value, f"= '{value}'")


def _legend(ask: Ask) -> str:
    return ask.legend.replace("{", "{{").replace("}", "}}")
