"""The dashboard files equal the generator's output, fit their backends' schemas, and use existing metrics only."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dashboards.generator.files import contents
from host_client.dashboards import files, langfuse
from host_client.telemetry.metrics.instruments import BY_NAME, METRICS, OUTCOMES, TOKEN_KINDS
from host_client.telemetry.otlp import ENVIRONMENT
from tests.support.prometheus import program

ROOT = Path(__file__).resolve().parents[2] / "dashboards"
SCHEMAS = Path(__file__).with_name("schemas")

MADE = contents()
GRAFANA = sorted(name for name in MADE if name.startswith("grafana/"))
SIGNOZ = sorted(name for name in MADE if name.startswith("signoz/"))

EXPOSED = {
    name: {label.replace(".", "_") for label in (*metric.labels, ENVIRONMENT)}
    for metric in METRICS
    for name in (
        [f"{metric.exposed}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.exposed]
    )
}


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text())


def test_the_files_are_what_the_generator_makes() -> None:
    there = {f"{b}/{file.name}" for b in files.BACKENDS for file in files.files(b)}
    assert there == set(MADE)
    stale = [name for name, text in MADE.items() if (ROOT / name).read_text() != text]
    assert stale == [], "run python -m dashboards.generator"


def validator_of(backend: str) -> Any:  # Any, as the validator's methods have no types
    return Draft202012Validator(json.loads((SCHEMAS / f"{backend}-dashboard.schema.json").read_text()))


@pytest.mark.parametrize(("backend", "names"), [("grafana", GRAFANA), ("signoz", SIGNOZ)])
def test_files_fit_the_schema_of_their_backend(backend: str, names: list[str]) -> None:
    validator = validator_of(backend)
    assert [name.split("/")[1] for name in names] == ["approvals.json", "cost.json", "overview.json", "tools.json"]
    assert [f"{name}: {error.message}" for name in names for error in validator.iter_errors(load(name))] == []


def test_the_schemas_are_not_empty_words() -> None:
    broken = {"grafana": {"panels": 7}, "signoz": {"spec": {"panels": 7}}}
    for backend, page in broken.items():
        assert not validator_of(backend).is_valid({**load(f"{backend}/cost.json"), **page})


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in load(name)["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for name in GRAFANA:
        for panel in panels(name):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"]
        for variable in load(name)["templating"]["list"]:
            if variable["type"] == "query":
                yield (
                    f"{name}: ${variable['name']}",
                    re.sub(r"label_values\((.*), (\w+)\)", r"\1{\2=~x}", variable["query"]),
                )
    for group in yaml.safe_load((ROOT / "prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alerts.yml: {rule['alert']}", rule["expr"]


@pytest.mark.parametrize("name", GRAFANA)
def test_a_page_of_grafana_has_nothing_empty_unexplained_or_out_of_place(name: str) -> None:
    page = load(name)
    assert page["schemaVersion"] == 42
    assert page["description"]
    assert [v["name"] for v in page["templating"]["list"]] == ["datasource", "tenant", "model", "environment"]
    ids = [panel["id"] for panel in panels(name)]
    assert len(set(ids)) == len(ids) > 5
    for panel in panels(name):
        assert panel["targets"], panel["title"]
        assert panel["description"].endswith((".", "?")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert {t["datasource"]["uid"] for t in (panel, *panel["targets"]) if "datasource" in t} == {"${datasource}"}
    boxes = [panel["gridPos"] for panel in page["panels"]]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24


def test_expressions_ask_for_metrics_and_labels_that_there_are() -> None:
    seen = 0
    for where, expression in expressions():
        bare = re.sub(r'"[^"]*"', "", expression)
        split = {label.strip() for group in re.findall(r"by \(([^)]*)\)", bare) for label in group.split(",")}
        asked = re.findall(r"\b((?:claude_agent|gen_ai_client)_\w+)(\{[^}]*\})?", bare)
        assert asked, where
        for metric, selector in asked:
            assert metric in EXPOSED, where
            assert split - {"le"} | set(re.findall(r"(\w+)\s*[=!]", selector)) <= EXPOSED[metric], where
            seen += 1
    assert seen > 80


def signoz_queries(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for slug, panel in load(name)["spec"]["panels"].items():
        (query,) = panel["spec"]["queries"]  # SigNoz accepts one query per panel, which may be a composite
        for each in query["spec"]["plugin"]["spec"]["queries"]:
            yield slug, each


@pytest.mark.parametrize("name", SIGNOZ)
def test_a_page_of_signoz_is_of_schema_six_and_lays_out_each_of_its_panels_once(name: str) -> None:
    page = load(name)
    assert page["schemaVersion"] == "v6"
    spec = page["spec"]
    items = [item for layout in spec["layouts"] for item in layout["spec"]["items"]]
    assert [item["content"]["$ref"] for item in items] == [f"#/spec/panels/{slug}" for slug in spec["panels"]]
    assert all(item["x"] + item["width"] <= 12 for item in items)
    assert all(panel["spec"]["display"]["description"] for panel in spec["panels"].values())


@pytest.mark.parametrize("name", SIGNOZ)
def test_queries_of_signoz_ask_for_metrics_and_labels_that_there_are(name: str) -> None:
    for slug, query in signoz_queries(name):
        spec = query["spec"]
        if query["type"] == "builder_formula":
            assert set(re.findall("[A-H]", spec["expression"])) <= _names(name, slug), slug
            continue
        (aggregation,) = spec["aggregations"]
        metric, _, part = aggregation["metricName"].rpartition(".")
        row = BY_NAME.get(aggregation["metricName"]) or BY_NAME[metric]
        wanted = {"histogram": {"bucket", "count"}}.get(row.kind, {part})
        assert part in wanted, slug
        assert aggregation["spaceAggregation"].startswith("p") == (part == "bucket"), slug
        labels = {key["name"] for key in spec["groupBy"]}
        labels |= set(re.findall(r"(?:^|AND )([\w.]+) (?:EXISTS|IN|=)", spec["filter"]["expression"]))
        assert ENVIRONMENT in labels, slug
        assert labels <= {*row.labels, ENVIRONMENT}, slug


# -- units ----------------------------------------------------------------------------------------------

COST = "claude.agent.cost.usd"


def unit_of(expression: str) -> str:
    """Return the unit of an expression's values, as Grafana names it."""
    metrics = set(re.findall(r"\b(?:claude_agent|gen_ai_client)_\w+", expression))
    costs = BY_NAME[COST].exposed in metrics
    if "histogram_quantile" in expression:
        return "s" if all(metric.endswith("_seconds_bucket") for metric in metrics) else "short"
    if costs:
        return "currencyUSD"
    if ") / " in expression:
        return "percentunit"
    if "rate(" in expression:
        return "cpm" if expression.endswith("* 60") else "cps"
    return "short"


@pytest.mark.parametrize("name", GRAFANA)
def test_units_of_grafana_are_those_of_the_values_and_a_cost_is_no_rate(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            unit, expression = panel["fieldConfig"]["defaults"]["unit"], target["expr"]
            assert unit == unit_of(expression), panel["title"]
            if unit == "currencyUSD":
                assert "US dollars" in panel["description"], panel["title"]
                assert panel["title"].endswith("an hour") == ("rate(" in expression or "3600" in expression)


@pytest.mark.parametrize("name", SIGNOZ)
def test_units_of_signoz_are_those_of_the_values_and_a_cost_is_no_rate(name: str) -> None:
    for slug, panel in load(name)["spec"]["panels"].items():
        queries = [query["spec"] for other, query in signoz_queries(name) if other == slug]
        aggregations = [query["aggregations"][0] for query in queries if "aggregations" in query]
        formula = "".join(query["expression"] for query in queries if "expression" in query)
        first, display = aggregations[0], panel["spec"]["display"]
        is_rate = {aggregation["timeAggregation"] for aggregation in aggregations} == {"rate"}
        if first["metricName"].endswith(".bucket"):
            unit = BY_NAME[first["metricName"].removesuffix(".bucket")].unit.replace("{token}", "short")
        elif first["metricName"] == COST:
            unit = "none"  # SigNoz has no currencies
            assert "US dollars" in display["description"], slug
            assert display["name"].endswith("an hour") == is_rate, slug
        elif "/" in formula:
            unit = "percentunit"
        else:
            unit = ("cpm" if "* 60" in formula else "cps") if is_rate else "short"
        formatting = panel["spec"]["plugin"]["spec"]["formatting"]
        assert formatting.get("unit", formatting.get("columnUnits", {}).get("A")) == unit, slug


def test_widgets_of_langfuse_name_the_unit_of_a_cost() -> None:
    for file in files.files("langfuse"):
        for placed in langfuse.read(file).widgets:
            is_cost = placed.widget.metrics[0]["measure"] == "totalCost"
            assert ("US dollars" in placed.widget.description) == is_cost, placed.widget.name


def _names(name: str, slug: str) -> set[str]:
    return {query["spec"]["name"] for other, query in signoz_queries(name) if other == slug}


def test_conditions_name_values_that_the_code_gives() -> None:
    found = {
        label: set(re.findall(rf'[{{ ]{label}="([^"]*)"', " ".join(expression for _, expression in expressions())))
        for label in ("kind", "outcome")
    }
    assert found["kind"] == {"cache_read"}
    assert found["kind"] <= set(TOKEN_KINDS)
    assert found["outcome"] == {"dropped", "spooled"}
    assert found["outcome"] <= set(OUTCOMES)


def test_files_of_langfuse_are_what_its_import_takes() -> None:
    for file in files.files("langfuse"):
        page = langfuse.read(file)
        raw = json.loads(file.read_text())
        assert all(placed["widget"]["$langfuseWidget"] for placed in raw["widgets"])
        assert all(placed.x + placed.x_size <= 12 for placed in page.widgets)
        assert all(placed.widget.name.startswith(f"{page.name}: ") for placed in page.widgets)


def test_promtool_takes_the_alert_rules() -> None:
    command = [program("promtool"), "check", "rules", "--lint-fatal", str(ROOT / "prometheus/alerts.yml")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
