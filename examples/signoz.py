"""Run a conversation of two turns with traces and metrics in SigNoz; keep slow traces and a tenth of the others.

    export ANTHROPIC_API_KEY=…
    python examples/signoz.py "Find the slowest test" "Make it faster"

Self-hosted on this machine by default; in the cloud:

    export SIGNOZ_OTLP_ENDPOINT=https://ingest.eu.signoz.cloud:443 SIGNOZ_INGESTION_KEY=…
"""

import asyncio
import os
import sys

from host_client import AgentOptions, events, open_session
from host_client.telemetry import SamplingConfig, TelemetryConfig, endpoints, initialize_telemetry


async def main(prompts: list[str]) -> None:
    url = os.environ.get("SIGNOZ_OTLP_ENDPOINT", endpoints.SIGNOZ_LOCAL)
    key = os.environ.get("SIGNOZ_INGESTION_KEY", "")
    telemetry = initialize_telemetry(
        TelemetryConfig(
            environment="production",
            exporters=("signoz",),
            signoz=endpoints.signoz(url, key),
            signoz_metrics=endpoints.signoz(url, key, "metrics"),
            sampling=SamplingConfig(rate=0.1, slow_ms=5000, tier_rates={"enterprise": 1.0}),
        )
    )
    options = AgentOptions(user_id="ada", tenant_id="acme", user_tier="enterprise")
    async with open_session(options=options, cwd=".", approvals="auto", telemetry=telemetry) as session:
        for prompt in prompts:
            await session.send(prompt)
        await session.finish()
        async for event in session:
            if isinstance(event, events.Result):
                print(event.data.result)
    telemetry.shutdown()
    print(telemetry.counts(), file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
