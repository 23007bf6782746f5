"""The spans that the E2B SDK emits by itself are children of Sandspan's spans in the same trace."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.e2e.test_commands import LIMIT, ROOT
from tests.host.test_session import ONE_TOOL
from tests.support.hosts import e2b_lab

PROGRAM = """
import asyncio, json, os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

theirs = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(theirs))
trace.set_tracer_provider(provider)

from host_client import run_agent
from host_client.sandbox.e2b import E2BSandbox

async def main():
    sandbox = E2BSandbox(environ=os.environ)
    return await run_agent("go", sandbox=sandbox, approvals="auto", environ=os.environ)

result = asyncio.run(main())
ours = {format(span.context.span_id, "016x"): span.name for span in result.spans}
seen = [
    {
        "name": span.name,
        "kind": span.kind.name,
        "trace": format(span.context.trace_id, "032x"),
        "parent": ours.get(format(span.parent.span_id, "016x")) if span.parent else None,
    }
    for span in theirs.get_finished_spans()
]
print(json.dumps({"trace": result.trace_id, "text": result.text, "spans": seen}), flush=True)
os._exit(0)
"""


def test_the_sdks_client_spans_are_children_of_ours_in_the_same_trace() -> None:
    # A process can set its tracer provider only once, so the test needs a process of its own.
    with e2b_lab(ONE_TOOL) as lab:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PATH": "/usr/bin:/bin", "HOME": str(lab.root), **lab.environ},
            cwd=ROOT,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        create = next(request for request in lab.e2b.requests if request.line == "POST /v2/sandboxes")
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["text"] == "Done."
    spans = told["spans"]
    assert len(spans) >= 5
    assert {span["kind"] for span in spans} == {"CLIENT"}
    assert {span["trace"] for span in spans} == {told["trace"]}
    assert {span["parent"] for span in spans} == {"sandbox.create", "agent.session", "sandbox.cleanup"}
    assert create.headers["traceparent"].split("-")[1] == told["trace"]
