"""No output of the host contains a secret of a run, and a run's user is the one that the host names."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from prometheus_client.parser import text_string_to_metric_families

from agent_runner.contract.protocol import AnyEvent, encode
from agent_runner.contract.sanitize import redact
from host_client import AgentOptions, AgentResult, run_agent
from host_client.telemetry import TelemetryConfig, initialize_telemetry
from host_client.telemetry.costs.report import add_up
from host_client.telemetry.export import endpoints
from host_client.telemetry.export.console import otlp_json
from tests.docs.test_telemetry import attributes_of_the_code
from tests.support.collector import Collector
from tests.support.hosts import host_lab, views
from tests.support.tables import ROOT

MARK = "Pl4nt3d"
"""A part of every planted secret, which occurs nowhere else."""

RUNNER = {"PYTHONPATH": str(ROOT)}
"""Variables with which the runner of this checkout runs, also if another version is installed."""


def secrets(place: str) -> str:
    """Return a text with one secret of each kind, each marked with the place where it is planted."""
    mark = f"{MARK}{place}"
    return (
        f"sk-ant-api03-{mark}0001 sk-lf-{mark}-0002 pk-lf-{mark}-0003 Authorization: Bearer {mark}.0004== "
        f"password={mark}0005 TOKEN: 'ghp_{mark}00000000006' mail {mark}.7@example.org\n"
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{mark}0008\n-----END OPENSSH PRIVATE KEY-----\r\n"
    )


def quoted(place: str) -> str:
    """Return the secrets quoted for a shell, without the carriage return that the CLI refuses in a command."""
    return shlex.quote(secrets(place).replace("\r", ""))


def script(folder: Path) -> str:
    tools: list[dict[str, Any]] = [
        {
            "name": "Bash",
            "input": {"command": f"cat {folder}/given; env; : {quoted('Input')}", "description": "Look"},
        },
        {"name": "Write", "input": {"file_path": f"{folder}/made", "content": secrets("Content")}},
        {"name": f"sk-ant-api03-{MARK}Tool0001", "input": {"why": secrets("Unknown")}},
        {"name": f"Evil\r\nTool: {MARK}.Name@example.org", "input": {}},
        {"name": "Bash", "input": {"command": f"echo {quoted('Stderr')} >&2; exit 3", "description": "Fail"}},
    ]
    main = {"replies": [{"text": secrets("Saying"), "tools": [tool]} for tool in tools] + [{"text": secrets("Answer")}]}
    fail = [{"status": 400, "times": 9, "message": secrets("Error")}]
    broken = {"when": "break", "replies": [{"text": "Never.", "fail": fail}]}
    return json.dumps({"conversations": {"main": main, "broken": broken}})


@dataclass
class Left:
    """The outputs of a run by their receiver, and the runs' results."""

    sinks: Mapping[str, bytes]
    results: list[AgentResult]
    metrics: str
    paths: set[str]
    events: bytes
    """The events as the host's caller got them; no exporter gets them."""


async def hostile_runs(tmp_path: Path, options: AgentOptions, **environ: str) -> Left:
    """Run both conversations with every exporter, one of which fails."""
    with socket.create_server(("localhost", 0)) as server:
        port = int(server.getsockname()[1])
    events: list[AnyEvent] = []
    lines = (tmp_path / "custom.jsonl").open("w")
    with Collector() as langfuse, Collector() as signoz, Collector(503) as down, host_lab(script(tmp_path)) as lab:
        telemetry = initialize_telemetry(
            TelemetryConfig(
                exporters=("langfuse", "signoz", "otlp", "console", "prometheus"),
                custom_exporters=[ConsoleSpanExporter(out=lines)],
                langfuse=endpoints.langfuse(langfuse.url, "pk-lf-own", "sk-lf-own"),
                signoz=endpoints.signoz(signoz.url),
                signoz_metrics=endpoints.signoz(signoz.url, signal="metrics"),
                otlp=endpoints.otlp("traces", down.url),
                prometheus_port=port,
                spool_directory=tmp_path / "spool",
                ledger=tmp_path / "ledger.sqlite",
            )
        )
        results = [
            await run_agent(
                prompt,
                options,
                approvals="auto",
                telemetry=telemetry,
                environ={**lab.environ, **environ},
                on_event=events.append,
            )
            for prompt in (f"Look: {secrets('Prompt')}", "break")
        ]
        assert telemetry.write(timeout=10.0), "metrics and ledger have all of it too"
        metrics = await asyncio.to_thread(scraped, port)
        assert not telemetry.shutdown(timeout=5.0), "one exporter is down"
    lines.close()
    bodies = {"langfuse": langfuse, "signoz": signoz, "refused": down}
    return Left(
        sinks={
            **{name: b"".join(request.body for request in of.requests) for name, of in bodies.items()},
            "custom": (tmp_path / "custom.jsonl").read_bytes(),
            "spool": b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()),
            "result": json.dumps([otlp_json(result.spans) for result in results]).encode(),
            "metrics": metrics.encode(),
            "ledger": b"".join(path.read_bytes() for path in ledger_files(tmp_path)),
        },
        results=results,
        metrics=metrics,
        events=b"".join(encode(event) for event in events),
        paths={f"{name}{request.path}" for name, of in bodies.items() for request in of.requests},
    )


def ledger_files(folder: Path) -> list[Path]:
    return list(folder.glob("ledger.sqlite*"))


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_the_secrets_are_such_as_can_be_recognised() -> None:
    assert MARK in secrets("Here")
    assert MARK not in redact(secrets("Here"))


@pytest.mark.anyio
@pytest.mark.parametrize("tool_content", ["none", "preview"])
async def test_no_exported_byte_holds_a_secret(
    tool_content: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / "given"
    work.write_text(secrets("File"))
    options = AgentOptions(
        user_id="ada", tenant_id="acme", tool_content=tool_content, env={**RUNNER, "OWN": secrets("Own")}
    )
    with caplog.at_level(logging.DEBUG):
        left = await hostile_runs(tmp_path, options, ANTHROPIC_API_KEY=f"sk-ant-{MARK}Key00001")
    for place in ("File", "Input", "Content", "Own", "Unknown", "Stderr", "Saying", "Answer", "Error", "Tool", ".Name"):
        assert f"{MARK}{place}".encode() in left.events, f"nothing was planted in {place}"
    console = capfd.readouterr().err
    sinks = {**left.sinks, "console": console.encode(), "log": caplog.text.encode()}
    for name in ("langfuse", "signoz", "refused", "custom", "spool", "result", "console"):
        assert b"agent.execute" in sinks[name], f"{name} got nothing"
    assert b"[redacted]" in sinks["langfuse"]
    assert b"acme" in sinks["ledger"]
    assert b"claude_agent_cost_usd_total" in sinks["metrics"]
    assert {"signoz/v1/metrics", "signoz/v1/traces"} <= left.paths
    found = {name: around(text) for name, text in sinks.items() if MARK.lower().encode() in text.lower()}
    assert found == {}


def around(text: bytes) -> bytes:
    at = text.lower().index(MARK.lower().encode())
    return text[max(0, at - 200) : at + 60]


@pytest.mark.anyio
async def test_line_breaks_in_names_inject_nothing_and_a_callers_baggage_bills_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = AgentOptions(
        user_id="ada\r\nX-Evil: yes\x1b[31m",
        tenant_id='acme"} 1\nevil_total{a="b"} 7\r\n#',
        env=RUNNER,
    )
    baggage = "user.id=mallory,tenant.id=evil-corp,session.id=hers"
    left = await hostile_runs(tmp_path, options, BAGGAGE=baggage, AGENT_USER_ID="mallory")
    families = {family.name for family in text_string_to_metric_families(left.metrics)}
    assert {name for name in families if not name.startswith(("claude_agent_", "gen_ai_", "target"))} == set()
    assert "\x1b" not in capfd.readouterr().err
    spans = [span for result in left.results for span in views(result.spans)]
    assert {span.attributes["user.id"] for span in spans} == {options.user_id}
    assert {span.attributes["tenant.id"] for span in spans} == {options.tenant_id}
    assert {name for span in spans for name in span.attributes if "evil" in name.lower()} == set()
    assert {key for span in spans for key in span.attributes} <= attributes_of_the_code()
    assert all("\n" not in span.name and "\r" not in span.name for span in spans)
    everything = b"".join(left.sinks.values()).lower()
    assert b"mallory" not in everything
    assert b"evil-corp" not in everything
    ((row,), _) = add_up([tmp_path / "ledger.sqlite"], ["user"])
    assert (row.keys[0] or "").startswith("ada")
    assert "\n" not in (row.keys[0] or "")
