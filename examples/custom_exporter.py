"""Use an exporter of your own that appends every tool call to a file, and a sanitizer of your own.

export ANTHROPIC_API_KEY=…
python examples/custom_exporter.py calls.jsonl "Make the tests pass"
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from host_client import AgentOptions, run_agent
from host_client.telemetry import TelemetryConfig, initialize_telemetry


class ToolCalls(SpanExporter):
    """Appends a line for each tool call; after an exception or FAILURE, Sandspan passes the spans again later."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._path.open("a") as file:
            for span in spans:
                attributes = span.attributes or {}
                if attributes.get("gen_ai.operation.name") == "execute_tool":
                    names = ("gen_ai.tool.name", "tool.execution_ms", "tool.is_error", "gen_ai.tool.call.arguments")
                    file.write(json.dumps({name: attributes.get(name) for name in names}) + "\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Do nothing, as every line has been written."""


def without_names(text: str) -> str:
    """Return a text without names; called for each prompt, answer and tool argument before its export."""
    return text.replace("Ada", "[name]")


async def main(path: Path, prompt: str) -> None:
    telemetry = initialize_telemetry(
        TelemetryConfig(exporters=(), custom_exporters=[ToolCalls(path)], sanitize_prompt=without_names)
    )
    options = AgentOptions(tool_content="preview")  # without this option no span has tool arguments
    result = await run_agent(prompt, options, cwd=".", approvals="auto", telemetry=telemetry)
    print(result.text)
    telemetry.shutdown()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), " ".join(sys.argv[2:])))
