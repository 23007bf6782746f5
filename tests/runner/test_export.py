"""The runner sends spans to the host as events, to an endpoint, or nowhere."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, LAB_SERVER, Finished, Lab, SpanView, spans_in, tree

MakeLab = Callable[[str], Lab]

TOOL = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: echo hello}}]
          - text: Done.
"""
TREE = [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
TYPES = ["start", "turn_start", "tool_use", "tool_result", "text", "result"]


class Collector:
    """The requests that an OTLP/HTTP endpoint received."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.spans: list[SpanView] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def collector(status: int = 200) -> Generator[Collector]:
    """Run an OTLP/HTTP endpoint on loopback."""
    received = Collector(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            received.spans.extend(spans_in(body))
            received.headers.append(dict(self.headers.items()))
            self.send_response(received.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name for it
            """Keep the server's log out of the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)


def seconds_to_leave(done: Finished) -> float:
    return done.one(protocol.End).ts - done.one(protocol.Result).ts


def test_with_an_endpoint_of_its_own_the_runner_exports_there_and_nowhere_else(make_lab: MakeLab) -> None:
    lab = make_lab(TOOL)
    with collector() as received:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
            "OTEL_SERVICE_NAME": "my-agent",
            "TRACEPARENT": "00-" + "a" * 32 + "-" + "b" * 16 + "-00",
        }
        done = lab.run("--prompt", "go", "--allowed-tools", "Bash", "--user-id", "ann", env=env)
        assert done.exit_code == 0
        # All of them are there when the process has ended.
        assert tree(received.spans) == TREE
    assert done.types == [*TYPES, "end"]
    assert done.of(protocol.TelemetryEvent) == []
    assert {span.trace_id for span in received.spans} == {"a" * 32}
    assert {span.attributes["user.id"] for span in received.spans} == {"ann"}
    assert {headers["x-key"] for headers in received.headers} == {"secret"}


def test_the_agent_sees_nothing_of_the_runners_own_settings(make_lab: MakeLab) -> None:
    lab = make_lab(TOOL.replace("echo hello", "env"))
    with collector() as received:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
            "AGENT_TENANT_ID": "acme",
        }
        done = lab.run("--prompt", "go", "--allowed-tools", "Bash", env=env)
    seen = dict(line.partition("=")[::2] for line in done.one(protocol.ToolResult).data.content.splitlines())
    private = {name: value for name, value in seen.items() if name.startswith(("OTEL_", "AGENT_")) and value}
    assert private == {}
    assert "secret" not in seen.values()


def test_an_endpoint_that_cannot_be_reached_costs_only_the_spans(make_lab: MakeLab) -> None:
    lab = make_lab(TOOL)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = lab.run("--prompt", "go", env={"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert done.exit_code == 0
    assert done.types == [*TYPES, "log", "end"]
    log = done.one(protocol.Log).data
    assert log.stream == "telemetry"
    assert log.text.startswith("4 of 4 spans were not exported: ")
    assert seconds_to_leave(done) < 5


def test_an_endpoint_that_never_answers_costs_only_the_spans(make_lab: MakeLab) -> None:
    lab = make_lab(TOOL)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        done = lab.run("--prompt", "go", env={"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert done.exit_code == 0
    assert done.types == [*TYPES, "log", "end"]
    assert done.one(protocol.Log).data.text == "4 of 4 spans were not exported: the endpoint did not answer"
    # 1.5 s for the flush, 1 s at most for the CLI to go, and a busy machine.
    assert seconds_to_leave(done) < 5


def test_an_endpoint_that_refuses_and_a_bad_setting_are_told(make_lab: MakeLab) -> None:
    lab = make_lab(TOOL)
    with collector(status=403) as received:
        refused = lab.run("--prompt", "go", env={"OTEL_EXPORTER_OTLP_ENDPOINT": received.url})
        grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        received.status = 200
        warned = lab.run("--prompt", "go", env=grpc)
    assert (refused.exit_code, warned.exit_code) == (0, 0)
    assert refused.one(protocol.Log).data.text.startswith("4 of 4 spans were not exported: ")
    expected = "OTLP protocol 'grpc' is not installed here: using http/protobuf"
    assert warned.one(protocol.Log).data == protocol.LogData(stream="telemetry", text=expected)


@pytest.mark.parametrize(
    ("switch", "recorded"), [({}, True), ({"OTEL_ENABLED": "false"}, False), ({"OTEL_SDK_DISABLED": "true"}, False)]
)
def test_for_the_relay_no_opentelemetry_module_is_imported_with_telemetry_on_or_off(
    make_lab: MakeLab, switch: dict[str, str], recorded: bool
) -> None:
    # The Claude SDK and mcp import the API package by themselves.
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: mcp__lab__modules, input: {prefix: ""}}]
              - tools: [{name: mcp__lab__modules, input: {prefix: ""}}]
              - text: Done.
    """)
    done = lab.run("--prompt", "go", *LAB_SERVER, "--allowed-tools", "mcp__lab__modules", env=switch)
    assert done.exit_code == 0
    call = ["tool_use", "tool_result"]
    assert done.types == ["start", "turn_start", *call, *call, "text", "result", "end"]
    assert bool(done.of(protocol.TelemetryEvent)) == recorded
    # Off or on, events name the spans they belong to.
    assert all(event.span_id.strip("0") for event in done.of(protocol.ToolUse))
    loaded = " ".join(result.data.content[0]["text"] for result in done.of(protocol.ToolResult)).split()
    assert "agent_runner._run" in loaded
    ours = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf")
    assert [name for name in loaded if name.startswith(ours)] == []
