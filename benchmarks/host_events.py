"""Measure events a second and CPU time per event from a runner's stdout to the iterator of a host's session.

The stream was recorded from a run of the runner over the replaying transport and comes through a pipe from another
process. It has two events for each tool call and one with their spans for every 32 calls; the spans are decoded,
checked and handed to an exporter that discards them. The baseline is the decoding of the lines alone.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agent_runner.contract.protocol import decode_event
from host_client import open_session
from host_client.sandbox.local import LocalProcess, LocalSandbox
from host_client.telemetry import TelemetryConfig, initialize_telemetry

from .support import Row, added, interleaved
from .turn import CONTEXT, recorded

CALLS = 5000
TIMES = 7


class Recording(LocalSandbox):
    """A sandbox whose runner is `cat` of a recorded stream."""

    def __init__(self, stream: Path) -> None:
        super().__init__()
        self._stream = stream

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        pipe = asyncio.subprocess.PIPE
        cat = await asyncio.create_subprocess_exec(
            "cat", str(self._stream), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        return LocalProcess(cat, 0)


class Nowhere(SpanExporter):
    """An exporter that counts spans and discards them."""

    def __init__(self) -> None:
        self.spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


async def read_session(stream: Path) -> tuple[int, float, float]:
    """Return the number of events, and their wall and CPU seconds."""
    exporter = Nowhere()
    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), custom_exporters=[exporter]))
    session = open_session(sandbox=Recording(stream), telemetry=telemetry, traceparent=CONTEXT.traceparent, environ={})
    count = 0
    async with session as events:
        wall, cpu = time.perf_counter(), time.process_time()
        async for _ in events:
            count += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert telemetry.shutdown(30.0)
    assert exporter.spans > 2 * CALLS, "a chat and a tool call's span for each"
    return count, wall, cpu


def measure() -> list[Row]:
    data = asyncio.run(recorded(CALLS))
    lines = data.split(b"\n")[:-1]
    rates: list[float] = []

    def decoding() -> float:
        cpu = time.process_time()
        for line in lines:
            decode_event(line)
        return (time.process_time() - cpu) / len(lines) * 1e6

    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        stream = Path(folder, "events.jsonl")
        stream.write_bytes(data)

        def session() -> float:
            count, wall, cpu = asyncio.run(read_session(stream))
            assert count == len(lines)
            rates.append(count / wall)
            return cpu / count * 1e6

        measured = interleaved(TIMES, {"bare": decoding, "ours": session})
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    return [
        Row(
            f"host: CPU per event, {len(lines):,} events",
            f"{bare:.1f} us (decoding alone)",
            f"{ours:.1f} us",
            f"{added(measured):+.1f} us",
        ),
        Row("host: events a second to the iterator", "", f"{statistics.median(rates):,.0f}", ""),
    ]
