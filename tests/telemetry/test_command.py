"""``host_client run`` is configured for telemetry by the environment, and runs in spite of mistakes in it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.collector import Collector
from tests.support.runs import clean_environment
from tests.support.tables import ROOT

TRACES_ALONE = {"OTEL_EXPORTERS": "otlp", "OTEL_METRICS_EXPORTER": "none"}
"""Metrics that a receiver refuses are sent again for 5 s at the end of a run."""

SCRIPT = "conversations: {main: {replies: [{text: Done.}]}}"


class Command:
    """Runs ``host_client`` in a home directory of its own."""

    def __init__(self, home: Path, model: ScriptedModel) -> None:
        self.home = home
        self._model = model

    def __call__(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = clean_environment(self.home, self._model.url, PYTHONPATH=str(ROOT), **environ)
        command = [sys.executable, "-m", "host_client", *args]
        done = subprocess.run(command, cwd=self.home, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    with ScriptedModel(parse_script(SCRIPT)) as model:
        yield Command(tmp_path, model)


def test_a_run_is_exported_and_its_trace_is_shown_once(command: Command) -> None:
    with Collector() as collector:
        done = command("run", "go", OTEL_EXPORTERS="console,otlp", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert (done.stdout + done.stderr).count("agent.execute") == 1
    assert len(collector.named("agent.session")) == 1
    (told,) = [line for line in (done.stdout + done.stderr).splitlines() if "telemetry" in line]
    assert told == f"telemetry: otlp: {len(collector.spans)} exported"


def test_what_is_wrong_is_told_once_and_the_agent_runs(command: Command) -> None:
    done = command("run", "go", OTEL_SAMPLING_RATE="7", OTEL_EXPORTERS="Kafka,langfuse")
    told = [line for line in done.stderr.splitlines() if line.startswith("telemetry:")]
    assert told == [
        "telemetry: OTEL_SAMPLING_RATE='7' takes a number from 0 to 1; using the default",
        "telemetry: OTEL_EXPORTERS has 'kafka'; known are langfuse, phoenix, signoz, prometheus, console, otlp; it is"
        " left out",
        "telemetry: langfuse needs LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY; nothing is sent to langfuse",
    ]
    assert "✓ done" in done.stdout


def test_what_has_not_arrived_is_told_and_the_next_run_sends_it(command: Command) -> None:
    with Collector(503) as collector:
        environ = {**TRACES_ALONE, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        done = command("run", "go", **environ)
        told = re.search(r"telemetry: otlp: 0 exported, (\d+ retried, )?(\d+) spooled, (\d+) waiting\n", done.stdout)
        assert told is not None, done.stdout
        # Spans that come after the receiver's first failure are not sent before its pause is over.
        assert 0 < int(told[2]) <= int(told[3])
        collector.status = 200
        before = len(collector.requests)
        again = command("run", "go", **environ)
        assert f"telemetry: otlp: {2 * int(told[3])} exported\n" in again.stdout
        arrived = [request for request in collector.requests[before:] if request.path == "/v1/traces"]
    assert sum(request.body.count(b"agent.session") for request in arrived) == 2


def test_spans_for_a_receiver_that_refuses_everything_wait_and_the_next_run_sends_them(command: Command) -> None:
    with Collector(400) as collector:
        environ = {**TRACES_ALONE, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        done = command("run", "go", **environ)
        told = re.search(r"telemetry: otlp: 0 exported, (?:\d+ retried, )?\d+ spooled, (\d+) waiting\n", done.stdout)
        assert told is not None, done.stdout
        assert "until this is fixed: HTTP 400" in done.stderr
        assert "✓ done" in done.stdout
        collector.status = 200
        again = command("run", "go", **environ)
    assert f"telemetry: otlp: {2 * int(told[1])} exported\n" in again.stdout


def test_a_trace_that_was_not_sampled_is_told_as_such(command: Command) -> None:
    with Collector() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SAMPLING_RATE": "0", "SANDSPAN_SLOW_RATE": "0"}
        done = command("run", "go", OTEL_EXPORTERS="otlp", **environ)
    assert "telemetry: otlp: 0 exported, the trace was not sampled\n" in done.stdout


def test_costs_are_written_down(command: Command) -> None:
    command("run", "go", "--user-id", "ada")
    done = command("costs", "--by", "user")
    assert "ada" in done.stdout
