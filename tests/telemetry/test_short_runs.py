"""Runs too short to be scraped reach a real Prometheus: by a real Pushgateway, a textfile, or OTLP with deltas."""

from __future__ import annotations

import fcntl
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from host_client.scripted_model import ScriptedModel, parse_script
from host_client.telemetry import Who
from host_client.telemetry.costs.report import add_up
from host_client.telemetry.export import endpoints
from host_client.telemetry.metrics import _textfile
from host_client.telemetry.metrics._textfile import PUSH_FAILURES, TextfilePart, added
from host_client.telemetry.metrics.observer import Metrics
from tests.support.collector import Collector
from tests.support.metrics import event, result
from tests.support.prometheus import program, prometheus, pushgateway
from tests.telemetry.receiver import nobody
from tests.telemetry.test_command import Command

RUNS = 8
SCRIPT = """
    model: claude-sonnet-4-5
    conversations: {main: {replies: [{text: Done., usage: {input_tokens: 1000, output_tokens: 333}}]}}
"""


def values_in(textfile: Path) -> dict[str, float]:
    """Return the sum of each sample's name in a textfile."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(textfile.read_text()):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0) + sample.value
    return values


def metrics_in(collector: Collector) -> Iterator[Metric]:
    for request in collector.requests:
        if request.path == "/v1/metrics":
            for of_resource in ExportMetricsServiceRequest.FromString(request.body).resource_metrics:
                for of_scope in of_resource.scope_metrics:
                    yield from of_scope.metrics


def test_eight_runs_are_eight_turns_with_the_ledgers_cost_in_a_real_prometheus(tmp_path: Path) -> None:
    """The first run finds no gateway, and some end at the same time."""
    textfile = tmp_path / "sandspan.prom"
    (tmp_path / "home").mkdir()
    with (
        pushgateway(tmp_path) as gateway,
        prometheus(int(gateway.rpartition(":")[2]), tmp_path) as real,
        Collector() as collector,
        nobody() as port,
        ScriptedModel(parse_script(SCRIPT)) as model,
    ):
        command = Command(tmp_path / "home", model)

        def run(number: int) -> subprocess.CompletedProcess[str]:
            return command(
                *("run", "go", "--user-id", f"user-{number % 2}"),
                OTEL_EXPORTERS="otlp",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
                OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
                SANDSPAN_METRICS_TEXTFILE=str(textfile),
                SANDSPAN_PUSHGATEWAY=gateway if number else f"127.0.0.1:{port}",
            )

        first = run(0)
        assert f"metrics were not pushed to http://127.0.0.1:{port}: " in first.stderr
        run(1)
        real.until("sum(claude_agent_duration_seconds_count)", lambda found: found == [({}, 2)])
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, range(2, RUNS)))
        real.until("sum(claude_agent_duration_seconds_count)", lambda found: found == [({}, RUNS)])

        spent = add_up([tmp_path / "home/.local/state/sandspan/ledger.sqlite"], [])[1]
        dollars: Any = pytest.approx(spent.nano_usd / 1e9, abs=1e-9)
        half: Any = pytest.approx(spent.nano_usd / 2e9, abs=1e-9)
        assert (spent.turns, spent.nano_usd > 0) == (RUNS, True)
        assert real.query("sum(claude_agent_cost_usd_total)") == [({}, dollars)]
        by_user = real.query("sum by (user) (claude_agent_cost_usd_total)")
        assert {labels["user"]: value for labels, value in by_user} == {"user-0": half, "user-1": half}
        assert real.query("sum(max_over_time(claude_agent_duration_seconds_count[1h]))") == [({}, RUNS)]
        assert real.query("sum(resets(claude_agent_events_total[1h]))") == [({}, 0)]
        assert real.query(f"{PUSH_FAILURES}_total")[0][1] >= 1
        ((_, exported),) = real.query("sum(claude_agent_telemetry_spans_total{outcome='exported'})")
        assert 0 < exported <= len(collector.spans)
        ((labels, _),) = real.query("claude_agent_textfile_info")
        assert (labels["job"], labels["instance"]) == ("host_client", labels["group"])

    in_file = values_in(textfile)
    assert (in_file["claude_agent_duration_seconds_count"], in_file["claude_agent_cost_usd_total"]) == (RUNS, dollars)
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=textfile.read_bytes(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")

    by_name: dict[str, list[Metric]] = {}
    for metric in metrics_in(collector):
        by_name.setdefault(metric.name, []).append(metric)
    durations, costs = by_name["claude.agent.duration.ms"], by_name["claude.agent.cost.usd"]
    assert sum(point.count for each in durations for point in each.histogram.data_points) == RUNS
    assert sum(point.as_double for each in costs for point in each.sum.data_points) == dollars
    assert {each.histogram.aggregation_temporality for each in durations} == {AGGREGATION_TEMPORALITY_DELTA}


def a_process(textfile: Path, gateway: str | None = None, timeout: float = 20.0) -> bool:
    """Record one turn that cost a cent, and end; return whether the metrics are where they belong."""
    metrics = Metrics([TextfilePart(textfile, None if gateway is None else endpoints.exact(gateway))])
    metrics.observe(event(result()), Who(session_id="s"))
    return metrics.close(timeout)


def test_processes_that_end_at_once_are_all_added(tmp_path: Path) -> None:
    textfile = tmp_path / "new folder" / "sandspan.prom"
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(a_process, [textfile] * 24))
    assert values_in(textfile)["claude_agent_cost_usd_total"] == pytest.approx(0.24)
    assert {path.name for path in textfile.parent.iterdir()} == {"sandspan.prom", "sandspan.prom.lock"}


def test_each_file_has_a_group_of_its_own_in_the_gateway(tmp_path: Path) -> None:
    with pushgateway(tmp_path) as gateway, prometheus(int(gateway.rpartition(":")[2]), tmp_path) as real:
        for name in ("one.prom", "two.prom", "one.prom"):
            assert a_process(tmp_path / name, gateway)
        real.until("sum(claude_agent_duration_seconds_count)", lambda found: found == [({}, 3)])
        assert real.query("count(claude_agent_duration_seconds_count)") == [({}, 2)]


def test_the_user_and_password_of_the_gateways_address_are_sent_as_a_header(tmp_path: Path) -> None:
    with Collector() as collector:
        assert a_process(tmp_path / "sandspan.prom", collector.url.replace("://", "://ada:hush@"))
    (pushed,) = collector.requests
    assert pushed.headers["authorization"] == "Basic YWRhOmh1c2g="
    assert re.fullmatch(r"/metrics/job/host_client/instance/[\w.-]+", pushed.path)


def test_a_gateway_that_hangs_or_refuses_is_logged_and_counted_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    textfile = tmp_path / "sandspan.prom"
    with Collector(400) as refusing, socket.create_server(("127.0.0.1", 0)) as hanging:
        addresses = [refusing.url, f"http://127.0.0.1:{hanging.getsockname()[1]}"]
        assert not any(a_process(textfile, address, 2.0) for address in addresses)
    values = values_in(textfile)
    assert (values["claude_agent_duration_seconds_count"], values[f"{PUSH_FAILURES}_total"]) == (2, 2)
    for address, record in zip(addresses, caplog.records, strict=True):
        assert record.getMessage().startswith(f"metrics were not pushed to {address}: ")


def test_a_process_that_waits_too_long_for_others_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    textfile = tmp_path / "sandspan.prom"
    with (tmp_path / "sandspan.prom.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not a_process(textfile, timeout=0.2)
    assert "an export of metrics has not ended within 0.2 s" in caplog.text


@pytest.mark.parametrize("content", [b"no metrics {", b"\xff"])
def test_a_file_of_another_format_is_left_as_it_is(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    textfile = tmp_path / "sandspan.prom"
    textfile.write_bytes(content)
    assert not a_process(textfile)
    assert textfile.read_bytes() == content
    assert f"{textfile}, and are lost: it is not in Prometheus' text format; move it away" in caplog.text


def counter(*rows: tuple[str, float], label: str = "tool") -> CounterMetricFamily:
    family = CounterMetricFamily("calls", "Calls.", labels=[label])
    for value, number in rows:
        family.add_metric([value], number)
    return family


def histogram(*buckets: tuple[str, float]) -> HistogramMetricFamily:
    return HistogramMetricFamily("seconds", "Seconds.", buckets=buckets, sum_value=1)


def test_a_label_without_a_value_is_the_same_as_none() -> None:
    sums = added(counter(("", 1)), counter(("", 2), label="error_type"))
    assert [(sample.labels, sample.value) for sample in sums.samples] == [({}, 3)]


def test_series_beyond_the_limit_are_added_up_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_textfile, "MAX_SERIES", 2)
    sums = added(added(None, counter(("a", 1), ("b", 2), ("c", 4))), counter(("d", 8), ("b", 16), ("c", 32)))
    assert [(sample.labels, sample.value) for sample in sums.samples] == [
        ({"tool": "a"}, 1),
        ({"tool": "b"}, 18),
        ({"otel_metric_overflow": "true"}, 44),
    ]


def test_a_histogram_whose_buckets_changed_begins_again() -> None:
    old, new = histogram(("1", 3), ("+Inf", 4)), histogram(("2", 1), ("+Inf", 1))
    assert added(old, new).samples == added(None, new).samples
    assert [sample.value for sample in added(new, new).samples] == [2, 2, 2, 2]
