"""Print text while the model writes it, tools while they run, and the trace at the end; no telemetry is sent.

export ANTHROPIC_API_KEY=…
python examples/console_streaming.py "What is in this folder?"
"""

import asyncio
import sys

from host_client import events, open_session
from host_client.telemetry import TelemetryConfig, initialize_telemetry


async def main(prompt: str) -> None:
    telemetry = initialize_telemetry(TelemetryConfig(exporters=("console",)))
    async with open_session(prompt, cwd=".", approvals="auto", telemetry=telemetry) as session:
        await session.finish()
        async for event in session:
            match event:
                case events.TextDelta():
                    print(event.data.text, end="", flush=True)
                case events.ToolUse():
                    print(f"\n[{event.data.name}] {event.data.input}")
                case events.ToolResult():
                    print(f"[{'failed' if event.data.is_error else 'done'} in {event.data.duration_ms:.0f} ms]")
                case events.Result():
                    print(f"\n${event.data.cost_usd:.4f}")
                case _:
                    pass
    telemetry.shutdown()


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:])))
