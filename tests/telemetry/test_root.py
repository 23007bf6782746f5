"""The span of a session, by which backends list its trace, and the name of the deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner.contract import genai
from agent_runner.contract.messages import text_message
from agent_runner.contract.protocol import Result
from host_client import AgentOptions, open_session, run_agent
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export.endpoints import otlp
from host_client.telemetry.otlp import values_of
from host_client.telemetry.setup.start import initialize_telemetry
from tests.support.collector import Collector
from tests.support.hosts import HostLab, host_lab, views

SCRIPT = """
    conversations:
      main:
        replies:
          - text: The first answer.
          - text: The last answer.
      broken:
        when: Break
        replies: [{text: Never., fail: [{status: 400, message: no such thing, times: 9}]}]
"""


async def two_turns(lab: HostLab, **options: Any) -> dict[str, Any]:
    """Return the attributes of the span of a session that has two turns."""
    async with open_session("First question", AgentOptions(**options), environ=lab.environ) as session:
        async for event in session:
            if isinstance(event, Result):
                if event.data.turn == 1:
                    await session.send("Second question")
                else:
                    await session.finish()
    (root,) = (view for view in views(session.trace.kept) if view.name == "agent.session")
    return root.attributes


@pytest.mark.anyio
async def test_the_span_of_a_session_has_the_first_prompt_and_the_last_answer_as_far_as_they_may_be_shown() -> None:
    with host_lab(SCRIPT) as lab:
        shown = await two_turns(lab)
        assert shown["gen_ai.input.messages"] == text_message("user", "First question")
        assert shown["gen_ai.output.messages"] == text_message("assistant", "The last answer.", "end_turn")
    with host_lab(SCRIPT) as lab:
        assert not {*genai.MESSAGES} & (await two_turns(lab, content="none")).keys()


@pytest.mark.anyio
async def test_every_span_and_metric_names_the_deployment_and_a_failed_session_why_it_failed(tmp_path: Path) -> None:
    with Collector() as collector, host_lab(SCRIPT) as lab:
        config = TelemetryConfig(
            environment="staging",
            exporters=("otlp",),
            otlp=otlp("traces", collector.url),
            otlp_metrics=otlp("metrics", collector.url),
            spool_directory=tmp_path / "spool",
        )
        telemetry = initialize_telemetry(config)
        await run_agent("Break", telemetry=telemetry, environ=lab.environ)
        assert telemetry.shutdown(timeout=60.0)
    (root,) = collector.named("agent.session")
    (turn,) = collector.named("agent.execute")
    assert root.message == turn.message == "API Error: 400 no such thing"
    services = {
        values["service.name"]: values["deployment.environment.name"] for values in map(values_of, resources(collector))
    }
    assert services == {"host_client": "staging", "agent_runner": "staging"}
    assert {request.path for request in collector.requests} == {"/v1/traces", "/v1/metrics"}


def resources(collector: Collector) -> list[Any]:
    """Return the attributes of the resources of all spans and metrics."""
    found: list[Any] = []
    for request in collector.requests:
        if request.path == "/v1/traces":
            found += [each.resource for each in ExportTraceServiceRequest.FromString(request.body).resource_spans]
        else:
            found += [each.resource for each in ExportMetricsServiceRequest.FromString(request.body).resource_metrics]
    return [resource.attributes for resource in found]
