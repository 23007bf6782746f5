"""Telemetry from its configuration to the spans that arrive."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host_client import AgentOptions, run_agent
from host_client.telemetry import SessionTrace, Who, root_of
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export.endpoints import langfuse, otlp, signoz
from host_client.telemetry.setup.environment import telemetry_config
from host_client.telemetry.setup.start import initialize_telemetry
from host_client.telemetry.tail.sampling import SamplingConfig
from tests.support.collector import Collector
from tests.support.hosts import e2b_lab, host_lab, views
from tests.support.runs import tree
from tests.telemetry.receiver import grpc_receiver

SCRIPT = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: Done.
"""
ADA = AgentOptions(user_id="ada")


@pytest.mark.anyio
async def test_a_run_arrives_whole_at_every_exporter(tmp_path: Path) -> None:
    with Collector() as one, Collector() as two, Collector() as three, host_lab(SCRIPT) as lab:
        telemetry = initialize_telemetry(
            TelemetryConfig(
                exporters=("langfuse", "signoz", "otlp"),
                langfuse=langfuse(one.url, "pk", "sk"),
                signoz=signoz(two.url),
                otlp=otlp("traces", three.url),
                spool_directory=tmp_path / "spool",
            )
        )
        result = await run_agent("go", ADA, approvals="auto", telemetry=telemetry, environ=lab.environ)
        assert telemetry.shutdown(timeout=30.0)
    for collector in (one, two, three):
        # Langfuse reads the price of a request by a name that the conventions do not have.
        spans = collector.spans
        for span in spans:
            span.attributes.pop("gen_ai.usage.cost", None)
        assert tree(spans) == tree(three.spans)
        assert {span.trace_id for span in collector.spans} == {result.trace_id}
        assert {span.attributes["user.id"] for span in collector.spans} == {"ada"}
    assert len(three.named("execute_tool Bash")) == 1
    assert {request.path for request in one.requests} == {"/api/public/otel/v1/traces"}
    assert {request.headers["x-langfuse-ingestion-version"] for request in one.requests} == {"4"}


@pytest.mark.anyio
async def test_a_run_arrives_at_signoz_over_grpc_on_any_port(tmp_path: Path) -> None:
    with grpc_receiver() as signoz_receiver, host_lab(SCRIPT) as lab:
        environ = {
            "HOME": str(tmp_path),
            "OTEL_EXPORTERS": "signoz",
            "SIGNOZ_OTLP_ENDPOINT": signoz_receiver.url,
            "SIGNOZ_OTLP_PROTOCOL": "grpc",
            "SIGNOZ_INGESTION_KEY": "key",
        }
        config, problems = telemetry_config(environ)
        assert problems == ()
        telemetry = initialize_telemetry(config)
        result = await run_agent("go", ADA, approvals="auto", telemetry=telemetry, environ=lab.environ)
        assert telemetry.shutdown(timeout=30.0)
    assert tree([span for request in signoz_receiver.requests for span in request.spans]) == tree(views(result.spans))
    assert "claude.agent.duration.ms" in signoz_receiver.requests[-1].metrics
    assert {request.headers["signoz-ingestion-key"] for request in signoz_receiver.requests} == {"key"}


@pytest.mark.anyio
async def test_a_trace_that_is_not_kept_arrives_nowhere_and_one_with_an_error_does(tmp_path: Path) -> None:
    script = """
        conversations:
          main: {replies: [{text: Done.}]}
          broken: {when: "break", replies: [{text: Never., fail: [{status: 400, times: 9}]}]}
    """
    with Collector() as collector, host_lab(script) as lab:
        config = TelemetryConfig(
            exporters=("otlp",),
            otlp=otlp("traces", collector.url),
            sampling=SamplingConfig(rate=0.0, slow_rate=0.0),
            spool_directory=tmp_path / "spool",
        )
        telemetry = initialize_telemetry(config)
        await run_agent("go", telemetry=telemetry, environ=lab.environ)
        failed = await run_agent("break", telemetry=telemetry, environ=lab.environ)
        assert failed.is_error
        assert telemetry.shutdown(timeout=30.0)
    assert {span.trace_id for span in collector.spans} == {failed.trace_id}
    assert len(collector.named("agent.session")) == 1


def test_every_problem_is_one_warning_and_no_key_is_in_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        telemetry = initialize_telemetry(TelemetryConfig(exporters=("kafka",), sampling=SamplingConfig(rate=7)))
    assert [record.message for record in caplog.records] == [
        "telemetry: SamplingConfig(rate=7) takes a number from 0 to 1; using 1.0",
        "telemetry: TelemetryConfig(exporters=…) has 'kafka'; known are langfuse, phoenix, signoz, prometheus, console,"
        " otlp; it is left out",
    ]
    assert telemetry.idle
    assert telemetry.shutdown()


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_a_bad_value_in_the_environment_is_one_line_on_stderr_and_the_process_goes_on(tmp_path: Path) -> None:
    code = "from host_client.telemetry.setup.start import initialize_telemetry as i; i().shutdown(); print('went on')"
    done = run_python(code, OTEL_SAMPLING_RATE="7", HOME=str(tmp_path))
    assert done.stdout == "went on\n"
    assert done.stderr == "telemetry: OTEL_SAMPLING_RATE='7' takes a number from 0 to 1; using the default\n"


def test_telemetry_that_is_off_loads_no_opentelemetry() -> None:
    code = (
        "import sys; from host_client.telemetry.setup.start import initialize_telemetry as i; t = i(); t.shutdown();"
        "print(t.enabled, [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = run_python(code, OTEL_ENABLED="false", OTEL_EXPORTERS="langfuse,kafka")
    assert (done.stdout, done.stderr) == ("False []\n", "")


def test_the_environments_configuration_is_one_that_can_be_built(tmp_path: Path) -> None:
    config, _ = telemetry_config({"HOME": str(tmp_path)})
    telemetry = initialize_telemetry(config)
    assert not telemetry.idle
    assert telemetry.shutdown()


def test_a_port_in_use_is_one_warning_and_spans_still_arrive(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server, Collector() as collector:
        config = TelemetryConfig(
            exporters=("prometheus", "otlp"),
            prometheus_port=server.getsockname()[1],
            otlp=otlp("traces", collector.url),
            spool_directory=tmp_path,
        )
        telemetry = initialize_telemetry(config)
        spans = SessionTrace(telemetry, {}, root_of(), Who(session_id="s"))
        spans.close(None, "")
        assert telemetry.shutdown(timeout=30.0)
    (warning,) = [record.message for record in caplog.records]
    assert warning.startswith(f"telemetry: prometheus cannot listen on localhost:{config.prometheus_port}")
    assert "OTEL_EXPORTER_PROMETHEUS_PORT" in warning
    assert [span.name for span in collector.spans] == ["agent.session"]


def test_users_without_a_tier_have_the_configured_ones_rate(tmp_path: Path) -> None:
    with Collector() as collector:
        config = TelemetryConfig(
            exporters=("otlp",),
            otlp=otlp("traces", collector.url),
            sampling=SamplingConfig(rate=0.0, tier_rates={"gold": 1.0, "free": 0.0}),
            tier="gold",
            spool_directory=tmp_path,
        )
        telemetry = initialize_telemetry(config)
        for session, tier in (("mine", None), ("gold", "gold"), ("free", "free"), ("other", "unheard of")):
            trace = SessionTrace(telemetry, {"session.id": session}, root_of(), Who(session_id=session, tier=tier))
            trace.close(None, "")
        assert telemetry.shutdown(timeout=30.0)
    assert {span.attributes["session.id"] for span in collector.spans} == {"mine", "gold"}


@pytest.mark.anyio
async def test_a_sanitizer_goes_over_what_is_exported_and_noted_and_its_failures_are_counted(tmp_path: Path) -> None:
    def mask(text: str) -> str:
        if "Done" in text:
            raise ValueError(text)
        return text.replace("Ada", "[name]")

    with Collector() as collector, e2b_lab(SCRIPT) as lab:
        config = TelemetryConfig(
            exporters=("otlp",), otlp=otlp("traces", collector.url), sanitize_prompt=mask, spool_directory=tmp_path
        )
        telemetry = initialize_telemetry(config)
        await run_agent("Ask Ada", approvals="auto", telemetry=telemetry, environ=lab.environ, sandbox=lab.sandbox())
        (sandbox,) = lab.e2b.sandboxes
        assert sandbox.metadata["prompt"] == "Ask [name]"
        assert telemetry.shutdown(timeout=30.0)
        assert telemetry.counts()["sanitize_prompt"]["withheld"] >= 1
    (turn,) = collector.named("agent.execute")
    assert "Ask [name]" in turn.attributes["gen_ai.input.messages"]
    bodies = b"".join(request.body for request in collector.requests)
    assert b"Ada" not in bodies
    assert b"[withheld]" in bodies
    assert b"Done" not in bodies
