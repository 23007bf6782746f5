"""A real MLflow shows the sessions that come by plain OTLP: tree, types, lists, tokens, users and errors."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from agent_runner.contract.messages import text_message
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export import endpoints
from tests.backends.servers import WAIT_SECONDS, server
from tests.backends.sessions import export_sessions
from tests.support.runs import CHAT
from tests.support.servers import free_port

EXPERIMENT = "0"
Json = dict[str, Any]


@contextmanager
def mlflow(folder: Path) -> Generator[str]:
    """Run MLflow with its data in a folder; yield its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.sqlite", "--artifacts-destination", str(folder))
    environ = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    listen = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    with server("mlflow", "server", *arguments, *listen, url=f"{url}/health", folder=folder, environ=environ):
        yield url


def shown(url: str, trace_id: str) -> Json:
    with urlopen(f"{url}/ajax-api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}", timeout=WAIT_SECONDS) as answer:
        return json.load(answer)["trace"]


def listed(url: str) -> dict[str, Json]:
    """Return the rows of the list of traces, by trace id."""
    where = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": EXPERIMENT}}
    body = json.dumps({"locations": [where]}).encode()
    request = Request(f"{url}/ajax-api/3.0/mlflow/traces/search", body, {"content-type": "application/json"})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        return {row["trace_id"].removeprefix("tr-"): row for row in json.load(answer)["traces"]}


def tree(spans: list[Json], parent: str | None) -> list[Any]:
    return [
        [f"{span['name']}: {_type(span)}", *tree(spans, span["span_id"])]
        for span in sorted(spans, key=lambda span: int(span["start_time_unix_nano"]))
        if span.get("parent_span_id") == parent
    ]


def _type(span: Json) -> str:
    values = {pair["key"]: pair["value"].get("string_value") for pair in span["attributes"]}
    return str(values.get("mlflow.spanType", "-"))


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_mlflow_shows_what_happened(tmp_path: Path) -> None:
    with mlflow(tmp_path) as url:
        endpoint = replace(
            endpoints.otlp("traces", url), headers={"x-mlflow-experiment-id": EXPERIMENT}, timeout=WAIT_SECONDS
        )
        config = TelemetryConfig(exporters=("otlp",), otlp=endpoint)
        mended, broken = await export_sessions(config)
        rows = listed(url)
        spans = shown(url, mended.trace_id)["spans"]

    chat, bash = [f"{CHAT}: CHAT_MODEL"], "execute_tool Bash: TOOL"
    approved = [bash, ["agent.approval: -"]]
    subagent = ["execute_tool Agent: TOOL", ["invoke_agent general-purpose: AGENT", chat, [bash], chat]]
    turn = ["agent.execute: AGENT", chat, approved, chat, subagent, chat, approved, chat]
    assert tree(spans, None) == [["agent.session: -", ["sandbox.create: -"], turn, ["sandbox.cleanup: -"]]]

    first = rows[mended.trace_id]
    assert (first["state"], first["request_preview"], first["response_preview"]) == (
        "OK",
        text_message("user", "Mend it"),
        text_message("assistant", "All is mended.", "end_turn"),
    )
    sessions = {
        (row["trace_metadata"]["mlflow.trace.user"], row["trace_metadata"]["mlflow.trace.session"])
        for row in rows.values()
    }
    assert sessions == {("ada", (run.spans[-1].attributes or {})["session.id"]) for run in (mended, broken)}
    tokens = json.loads(first["trace_metadata"]["mlflow.trace.tokenUsage"])
    assert (tokens["cache_read_input_tokens"], tokens["cache_creation_input_tokens"]) == (1000, 200)
    failed = [span for span in spans if span.get("status", {}).get("code") == "STATUS_CODE_ERROR"]
    assert [(span["name"], span["status"]["message"]) for span in failed] == [("execute_tool Bash", "Bash: failed")]
    # MLflow takes input, output and state from a span without a parent, and the caller's span is not in MLflow.
    assert "request_preview" not in rows[broken.trace_id]
