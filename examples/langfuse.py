"""Run an agent and send its trace to Langfuse.

    export LANGFUSE_PUBLIC_KEY=pk-lf-… LANGFUSE_SECRET_KEY=sk-lf-… ANTHROPIC_API_KEY=…
    python examples/langfuse.py "Make the tests pass"

LANGFUSE_BASE_URL is https://cloud.langfuse.com by default.
"""

import asyncio
import os
import sys

from host_client import AgentOptions, run_agent
from host_client.telemetry import TelemetryConfig, endpoints, initialize_telemetry


async def main(prompt: str) -> None:
    telemetry = initialize_telemetry(
        TelemetryConfig(
            exporters=("langfuse",),
            langfuse=endpoints.langfuse(
                os.environ.get("LANGFUSE_BASE_URL", endpoints.LANGFUSE_CLOUD),
                os.environ["LANGFUSE_PUBLIC_KEY"],
                os.environ["LANGFUSE_SECRET_KEY"],
            ),
        )
    )
    options = AgentOptions(user_id="ada", attributes={"langfuse.trace.metadata.team": "platform"})
    result = await run_agent(prompt, options, cwd=".", approvals="auto", telemetry=telemetry)
    print(result.text)
    delivered = telemetry.shutdown()
    print(f"trace {result.trace_id}, {'delivered' if delivered else 'not delivered'}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:])))
