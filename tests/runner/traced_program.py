"""A program that is instrumented with OpenTelemetry's SDK, as a command of an agent.

``python traced_program.py NAME`` exports a span ``NAME`` with the child ``NAME step`` to the endpoint in its
environment, below the span in TRACEPARENT. Options: ``hang`` writes to the fifo ``NAME`` when the child was exported,
and then does not end; ``wait`` does so and ends when the fifo ``gate`` is opened; ``root`` ignores TRACEPARENT.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

name, *options = sys.argv[1:]
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("traced_program")
carrier = {} if "root" in options else {"traceparent": os.environ["TRACEPARENT"]}
with tracer.start_as_current_span(name, TraceContextTextMapPropagator().extract(carrier)):
    attributes = {"user.id": "mallory", "key": "sk-ant-api03-" + "x" * 93}
    with tracer.start_as_current_span(f"{name} step", attributes=attributes):
        pass
    if {"hang", "wait"} & {*options}:
        provider.force_flush()
        Path(name).write_text("exported")
    if "hang" in options:
        time.sleep(600)
    if "wait" in options:
        Path("gate").read_text()
provider.shutdown()
