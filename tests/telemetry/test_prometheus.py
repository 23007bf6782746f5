"""A real Prometheus scrapes the documented names from real runs, and promtool accepts the output."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import Metric as Family
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent_runner.contract import protocol as p
from host_client import AgentOptions, Telemetry, run_agent
from host_client.telemetry import TelemetryConfig, Who, initialize_telemetry
from host_client.telemetry.metrics._prometheus import PrometheusServer, Registry
from host_client.telemetry.metrics.instruments import METRICS, Metric
from host_client.telemetry.metrics.observer import Metrics, metrics_of
from tests.support.hosts import host_lab
from tests.support.metrics import event, result
from tests.support.prometheus import program, prometheus

WAIT_SECONDS = 60.0

SCRIPT = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}, {name: Bash, input: {command: exit 3}}]
          - tools: [{name: Agent, input: {description: d, prompt: Say hello, subagent_type: general-purpose,
                                          run_in_background: false}}]
          - text: Done.
            usage: {output_tokens: 42, more: {output_tokens_details: {thinking_tokens: 30}}, at_end: true}
      helper:
        when: Say hello
        replies: [{text: Hello.}]
      fails:
        when: Fail
        replies: [{fail: [{status: 401, times: 20}], text: Never.}]
"""

COUNTS = {"langfuse": {"exported": 7, "retried": 1, "spooled": 1, "dropped: refused": 2}}


@contextmanager
def served() -> Generator[tuple[Telemetry, PrometheusServer]]:
    """Yield telemetry and the server from which its metrics can be scraped."""
    server = PrometheusServer("127.0.0.1", 0)
    metrics = Metrics([server])
    metrics.watch(lambda: COUNTS)
    telemetry = Telemetry(observers=[metrics])
    try:
        yield telemetry, server
    finally:
        assert telemetry.shutdown()


def scraped(server: PrometheusServer, accept: str = "text/plain") -> str:
    """Return the text of one scrape."""
    request = Request(f"http://127.0.0.1:{server.port}/metrics", headers={"accept": accept})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        return answer.read().decode()


def check(promtool: str, exposed: str) -> subprocess.CompletedProcess[str]:
    command = [promtool, "check", "metrics"]
    return subprocess.run(command, input=exposed, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


async def everything(telemetry: Telemetry) -> list[float]:
    """Run agents that together record every metric; return the costs."""
    who = AgentOptions(user_id="ada", tenant_id="acme", user_tier="pro", model="scripted")
    with host_lab(SCRIPT) as lab:
        environ = {**lab.environ, "CLAUDE_CODE_MAX_RETRIES": "0"}
        works = await run_agent("go", who, approvals="auto", telemetry=telemetry, environ=environ)
        fails = await run_agent("Fail", who, telemetry=telemetry, environ=environ)
    assert (works.is_error, fails.error_type) == (False, "authentication")
    assert telemetry.flush(WAIT_SECONDS)
    return [works.cost_usd, fails.cost_usd]


def series(metric: Metric) -> str:
    """Return the name of a series that exists for a metric of its kind."""
    return f"{metric.exposed}_count" if metric.kind == "histogram" else metric.exposed


@pytest.mark.anyio
async def test_a_real_prometheus_finds_every_metric_of_real_runs_under_its_documented_name(tmp_path: Path) -> None:
    with served() as (telemetry, server), prometheus(server.port, tmp_path) as real:
        costs = await everything(telemetry)
        real.until("claude_agent_duration_seconds_count", lambda found: sum(value for _, value in found) == 2)
        for metric in METRICS:
            found = real.query(series(metric))
            assert found, metric.exposed
            documented = {label.replace(".", "_") for label in metric.labels} | {
                *("__name__", "instance", "job", "deployment_environment_name")
            }
            assert {labels["deployment_environment_name"] for labels, _ in found} == {"development"}, metric.exposed
            assert {label for labels, _ in found for label in labels} <= documented, metric.exposed
        spent = real.query("sum by (user, tenant, tier) (claude_agent_cost_usd_total)")
        assert spent == [({"user": "ada", "tenant": "acme", "tier": "pro"}, pytest.approx(sum(costs), abs=1e-9))]
        ((service, _),) = real.query("target_info")
        assert service["service_name"] == "host_client"
        assert real.query('histogram_quantile(0.9, claude_agent_duration_seconds_bucket{error_type=""})')
        assert real.query("sum by (reason) (claude_agent_telemetry_spans_total{outcome='dropped'})") == [
            ({"reason": "refused"}, 2)
        ]


@pytest.mark.anyio
async def test_promtool_has_nothing_to_complain_of() -> None:
    promtool = program("promtool")
    with served() as (telemetry, server):
        await everything(telemetry)
        exposed = scraped(server)
    assert {metric.exposed for metric in METRICS} <= {
        line.split()[2] for line in exposed.split("\n") if line.startswith("# TYPE")
    }
    checked = check(promtool, exposed)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_milliseconds_are_exposed_as_seconds_with_the_same_buckets() -> None:
    with served() as (telemetry, server):
        telemetry.observe(event(result(duration_ms=1500.0)), Who(session_id="s"))
        assert telemetry.flush(WAIT_SECONDS)
        exposed = scraped(server)
    families = {family.name: family for family in text_string_to_metric_families(exposed)}
    samples = families["claude_agent_duration_seconds"].samples
    assert [sample.value for sample in samples if sample.name.endswith("_sum")] == [1.5]
    below = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert (below["1.0"], below["2.5"], below["3600.0"], below["+Inf"]) == (0, 1, 1, 1)


def test_every_series_has_the_environment_of_the_configuration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = TelemetryConfig(exporters=("prometheus",), prometheus_port=port, environment="staging")
    telemetry = initialize_telemetry(config)
    telemetry.observe(event(result()), Who(session_id="s"))
    assert telemetry.flush(WAIT_SECONDS)
    with urlopen(f"http://localhost:{port}/metrics", timeout=WAIT_SECONDS) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert telemetry.shutdown()
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["deployment_environment_name"] for sample in samples} == {"staging"}
    assert "claude_agent_cost_usd_total" in {sample.name for sample in samples}


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    with served() as (telemetry, server):
        telemetry.observe(event(result()), Who(session_id="s"))
        assert telemetry.flush(WAIT_SECONDS)
        exposed = scraped(server, "application/openmetrics-text; version=1.0.0")
    assert exposed.endswith("# EOF\n")
    assert "# TYPE claude_agent_cost_usd counter" in exposed


class Slow:
    """A collector that waits 0.2 s for a second scrape at the same time."""

    def __init__(self) -> None:
        self.met = False
        self._two = threading.Barrier(2)

    def collect(self) -> Iterator[Family]:
        try:
            self._two.wait(0.2)
            self.met = True
        except threading.BrokenBarrierError:
            self._two.reset()
        yield from ()


def test_scrapes_take_turns_as_opentelemetrys_collector_is_not_made_for_two() -> None:
    registry, slow = Registry(), Slow()
    registry.register(slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(generate_latest, [registry] * 2))
    assert not slow.met


def test_what_a_sandbox_names_breaks_no_line() -> None:
    evil = 'x"} 9\nclaude_agent_cost_usd_total{user="bob"} 1000000\\'
    with served() as (telemetry, server):
        telemetry.observe(event(p.ToolUseData(id="t", name=evil, input={})), Who(session_id="s", user_id=evil))
        telemetry.observe(
            event(result(0.5, turn_model_usage={evil: {"costUSD": 0.5}})), Who(session_id="s", user_id=evil)
        )
        assert telemetry.flush(WAIT_SECONDS)
        families = list(text_string_to_metric_families(scraped(server)))
    (cost,) = [family for family in families if family.name == "claude_agent_cost_usd"]
    assert [sample.value for sample in cost.samples] == [0.5]


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_one_clear_message_and_the_agent_runs(caplog: pytest.LogCaptureFixture) -> None:
    script = "{conversations: {main: {replies: [{text: Done.}]}}}"
    with socket.create_server(("127.0.0.1", 0)) as taken, host_lab(script) as lab:
        port = taken.getsockname()[1]
        config = TelemetryConfig(exporters=("prometheus",), prometheus_host="127.0.0.1", prometheus_port=port)
        with caplog.at_level(logging.WARNING):
            telemetry = initialize_telemetry(config)
        ended = await run_agent("go", telemetry=telemetry, environ=lab.environ)
        telemetry.shutdown()
    assert ended.text == "Done."
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"prometheus cannot listen on 127.0.0.1:{port} (Address already in use)" in told
    assert "set OTEL_EXPORTER_PROMETHEUS_PORT" in told


@pytest.mark.integration
@pytest.mark.parametrize("host", ["x" * 100 + ".com", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_one_clear_message(host: str) -> None:
    metrics, problems = metrics_of(TelemetryConfig(exporters=("prometheus",), prometheus_host=host))
    assert metrics is None
    (told,) = problems
    assert told.startswith(f"prometheus cannot listen on {host}:9464 (")


def test_after_the_end_nothing_listens() -> None:
    with served() as (_, server):
        assert scraped(server)
    with pytest.raises(URLError):
        scraped(server)
