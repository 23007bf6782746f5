"""Real sessions, with tools, a subagent, approvals and failures, which are exported to a backend."""

from __future__ import annotations

from host_client import AgentOptions, run_agent
from host_client.client.agent import AgentResult
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.setup.start import initialize_telemetry
from tests.backends.servers import WAIT_SECONDS
from tests.support.hosts import host_lab
from tests.support.runs import MODEL

SCRIPT = f"""
    model: {MODEL}
    conversations:
      main:
        when: Mend
        replies:
          - text: I will look.
            tools: [{{name: Bash, input: {{command: echo seen > made; cat made}}}}]
            usage: {{input_tokens: 10, output_tokens: 50,
                    cache_read_input_tokens: 1000, cache_creation_input_tokens: 200}}
          - tools:
              - name: Agent
                input: {{description: count, prompt: Count the lines, subagent_type: general-purpose,
                        run_in_background: false}}
          - tools: [{{name: Bash, input: {{command: exit 3}}}}]
          - text: All is mended.
      helper:
        when: Count the lines
        replies:
          - tools: [{{name: Bash, input: {{command: wc -l made}}}}]
          - text: One line.
      broken:
        when: Break
        replies: [{{text: Never., fail: [{{status: 400, message: no such thing, times: 9}}]}}]
"""

OPTIONS = AgentOptions(
    model=MODEL,
    user_id="ada",
    tenant_id="acme",
    attributes={"team": "blue", "trace.name": "Mending"},
    content="full",
    tool_content="full",
)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def export_sessions(config: TelemetryConfig) -> tuple[AgentResult, AgentResult]:
    """Run one session that ends well, and one that fails within a caller's trace; deliver the spans of both.

    Without a spool's directory the end of telemetry waits for a backend that answers its first request slowly.
    """
    assert config.spool_directory is None
    telemetry = initialize_telemetry(config)
    with host_lab(SCRIPT) as lab:
        mended = await run_agent("Mend it", OPTIONS, approvals="auto", telemetry=telemetry, environ=lab.environ)
        broken = await run_agent("Break it", OPTIONS, telemetry=telemetry, environ=lab.environ, traceparent=CALLER)
    assert (mended.is_error, broken.is_error) == (False, True)
    assert telemetry.shutdown(timeout=WAIT_SECONDS), telemetry.counts()
    return mended, broken
