"""Every expression of the dashboards and alerts has values in a real Prometheus that scraped real runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from agent_runner.contract.protocol import AnyEvent, ApprovalRequest, ApprovalResolved
from dashboards.generator.alerts import ALERTS, Alert
from dashboards.generator.panels import DASHBOARDS, Ask, Panel
from dashboards.generator.promql import ZERO, Range, promql
from host_client import AgentOptions, AgentResult, LocalSandbox, Telemetry, run_agent
from host_client.sandbox.local import LocalProcess
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations import Delivered, Outcome, Retry
from host_client.telemetry.export.sender import MAX_SPANS
from host_client.telemetry.export.spool import Spool
from host_client.telemetry.metrics._prometheus import PrometheusServer
from host_client.telemetry.metrics.observer import Metrics
from tests.support.hosts import host_lab
from tests.support.prometheus import Labels, Prometheus, program, prometheus

WINDOW = "10m"
RANGE = Range(WINDOW, None, "acme|", "scripted|", "test")
TOTAL = Range(WINDOW, "600", "acme|", "scripted|", "test")
"""The range of the whole test, for the runs' tenant, model and environment; also for no tenant and no model."""

SCRIPT = """
    model: scripted
    conversations:
      works:
        when: Work
        replies:
          - tools: [{name: Bash, input: {command: "true"}}, {name: Bash, input: {command: "exit 3"}}]
            usage: {input_tokens: 10, output_tokens: 20, cache_read_input_tokens: 500, cache_creation_input_tokens: 50}
          - tools: [{name: Bash, input: {command: touch denied}}]
          - text: Done.
            usage: {input_tokens: 10, output_tokens: 20, cache_read_input_tokens: 900}
      waits:
        when: Wait
        replies:
          - tools: [{name: Bash, input: {command: touch unanswered}}]
          - text: Nobody came.
      fails:
        when: Fail
        replies:
          - fail: [{status: 401, times: 20}]
            text: Never.
      dies:
        when: Die
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: Never.
"""


@dataclass(frozen=True)
class Receiver:
    """A destination of spans whose every request has the same outcome."""

    name: str
    outcome: Outcome
    durable: bool = True

    @property
    def key(self) -> str:
        return self.name

    def send(self, request: bytes) -> Outcome:
        return self.outcome

    def close(self) -> None:
        """Do nothing, as there is no connection."""


@dataclass(frozen=True)
class Watched:
    """The Prometheus that scraped the runs, and the results of the runs."""

    prometheus: Prometheus
    results: Sequence[AgentResult]


class MortalSandbox(LocalSandbox):
    """A local sandbox that keeps its first runner's process, so that a test can kill it."""

    started: LocalProcess | None = None

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        process = await super().run(args, env)
        self.started = self.started or process
        return process


async def decide(request: ApprovalRequest) -> bool:
    return "denied" not in str(request.data.input)


async def never(request: ApprovalRequest) -> bool:
    await asyncio.Event().wait()
    return False


async def everything(environ: Mapping[str, str], telemetry: Telemetry, user: str) -> list[AgentResult]:
    """Run agents that succeed, wait for an approval in vain, fail, and lose their runner."""
    who = AgentOptions(user_id=user, tenant_id="acme", user_tier="pro", model="scripted", approval_timeout=0.3)
    sandbox = MortalSandbox()

    def kill(event: AnyEvent) -> None:
        if isinstance(event, ApprovalResolved):
            assert sandbox.started is not None
            os.kill(sandbox.started.pid, signal.SIGKILL)

    once = {**environ, "CLAUDE_CODE_MAX_RETRIES": "0"}
    return list(
        await asyncio.gather(
            run_agent("Work", who, approvals=decide, environ=environ, telemetry=telemetry),
            run_agent("Wait", who, approvals=never, environ=environ, telemetry=telemetry),
            run_agent("Fail", who, environ=once, telemetry=telemetry),
            run_agent(
                "Die", who, sandbox=sandbox, approvals="auto", environ=environ, telemetry=telemetry, on_event=kill
            ),
        )
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Generator[Watched]:
    """Run agents before and after Prometheus' first scrape, as a rate needs two values."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    server = PrometheusServer("127.0.0.1", 0)
    metrics = Metrics([server], environment="test")
    receivers = (
        Receiver("takes", Delivered()),
        Receiver("is down", Retry(0.01, "down")),
        Receiver("refuses", Delivered(MAX_SPANS, "too old")),
    )
    telemetry = Telemetry(Delivery(receivers, Spool(folder / "spool")), [metrics])
    metrics.watch(telemetry.counts)
    with host_lab(SCRIPT) as lab, prometheus(server.port, folder) as real:
        results = asyncio.run(everything(lab.environ, telemetry, "ada"))
        real.until("claude_agent_duration_seconds_count", lambda found: sum(value for _, value in found) >= 3)
        results += asyncio.run(everything(lab.environ, telemetry, "ada"))
        real.until("claude_agent_duration_seconds_count", lambda found: sum(value for _, value in found) >= 6)
        bob = AgentOptions(user_id="bob", tenant_id="acme", model="scripted")
        results.append(asyncio.run(run_agent("Work", bob, approvals=decide, environ=lab.environ, telemetry=telemetry)))
        real.until('count_over_time(claude_agent_cost_usd_total{user="bob"}[1m])', lambda found: found != [])
        yield Watched(real, results)
        telemetry.shutdown()


def asked(panel: Panel, ask: Ask) -> str:
    return promql(ask.query, TOTAL if panel.kind in ("number", "ranking") else RANGE)


CASES = [
    pytest.param(panel, ask, id=f"{page.slug}: {panel.title}: {ask.legend}")
    for page in DASHBOARDS
    for panel in page.panels
    for ask in panel.asks
]


@pytest.mark.parametrize(("panel", "ask"), CASES)
def test_no_panel_is_empty(watched: Watched, panel: Panel, ask: Ask) -> None:
    expression = asked(panel, ask)
    found = watched.prometheus.query(expression.replace(ZERO, ""))
    assert found, expression
    assert watched.prometheus.query(expression), expression
    names = {label.replace(".", "_") for label in re.findall(r"\{([^}]*)\}", ask.legend)}
    assert any(names <= set(labels) for labels, _ in found), f"no series has {names}"
    limit = 1.0 if panel.unit == "share" else float("inf")
    assert all(0 <= value <= limit for _, value in found), found


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_no_alert_is_deaf(watched: Watched, alert: Alert) -> None:
    assert watched.prometheus.query(alert.expression), alert.expression


def value(watched: Watched, page: str, title: str) -> list[tuple[Labels, float]]:
    panels = [panel for each in DASHBOARDS if each.slug == page for panel in each.panels if panel.title == title]
    return watched.prometheus.query(asked(panels[0], panels[0].asks[0]))


def test_the_cost_shown_is_what_the_runs_cost(watched: Watched) -> None:
    cost = sum(result.cost_usd for result in watched.results)
    assert cost > 0
    assert value(watched, "cost", "Cost") == [({}, pytest.approx(cost, rel=0.1))]
    by_model = value(watched, "cost", "Cost by model")
    assert sum(shown for _, shown in by_model) == pytest.approx(cost, rel=0.1)


def test_another_environment_has_no_cost(watched: Watched) -> None:
    (panel,) = [panel for page in DASHBOARDS if page.slug == "cost" for panel in page.panels if panel.title == "Cost"]
    other = promql(panel.asks[0].query, TOTAL._replace(environment="production"))
    assert watched.prometheus.query(other) == []


def test_the_cost_of_a_user_with_one_turn_is_not_left_out(watched: Watched) -> None:
    by_user = {labels["user"]: shown for labels, shown in value(watched, "cost", "Users by cost")}
    assert by_user["bob"] == pytest.approx(watched.results[-1].cost_usd)
