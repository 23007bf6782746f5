"""A real Phoenix shows the sessions: tree, kinds, inputs, outputs, tokens, costs, users, sessions and errors."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export import endpoints
from tests.backends.servers import WAIT_SECONDS, server
from tests.backends.sessions import export_sessions
from tests.support.runs import CHAT
from tests.support.servers import POLL_SECONDS, free_port

PROJECT = "mending"
QUERY = """
query ($project: String!) {
  projects(filter: {col: name, value: $project}) { edges { node {
    sessions(first: 9) { edges { node {
      sessionId userId numTraces firstInput { value } lastOutput { value } costSummary { total { cost } }
    } } }
    spans(first: 99, sort: {col: startTime, dir: asc}, filterCondition: "%s") { edges { node {
      name spanId parentId spanKind statusCode statusMessage userId
      input { value mimeType } output { value mimeType }
      tokenCountPrompt tokenCountCompletion tokenPromptDetails { cacheRead cacheWrite } costSummary { total { cost } }
      trace { traceId errorsByType { exceptionType count } rootSpan { name } }
    } } }
  } } }
}
"""
Json = dict[str, Any]


@contextmanager
def phoenix(folder: Path) -> Generator[str]:
    """Run Phoenix with its data in a folder; yield its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    with server("phoenix", "serve", url=f"{url}/healthz", folder=folder, environ=environ):
        yield url


def asked(url: str, condition: str = "") -> Json:
    """Return the project with its sessions and the spans that fulfil a condition."""
    body = json.dumps({"query": QUERY % condition, "variables": {"project": PROJECT}}).encode()
    with urlopen(Request(f"{url}/graphql", body, {"content-type": "application/json"}), timeout=WAIT_SECONDS) as answer:
        found = json.load(answer)
    assert "errors" not in found, found
    projects = nodes(found["data"]["projects"])
    return projects[0] if projects else {"spans": {"edges": []}}


def nodes(connection: Json) -> list[Json]:
    return [edge["node"] for edge in connection["edges"]]


def until_spans(url: str, count: int) -> Json:
    """Wait until Phoenix, which stores spans after it has accepted them, shows this many."""
    limit = time.monotonic() + WAIT_SECONDS
    while len(nodes((project := asked(url))["spans"])) < count:
        assert time.monotonic() < limit, project
        time.sleep(POLL_SECONDS)
    return project


def tree(spans: list[Json], parent: str | None) -> Iterator[list[Any]]:
    for span in spans:
        if span["parentId"] == parent:
            yield [f"{span['name']}: {span['spanKind']}", *tree(spans, span["spanId"])]


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_phoenix_shows_what_happened(tmp_path: Path) -> None:
    with phoenix(tmp_path) as url:
        config = TelemetryConfig(exporters=("phoenix",), phoenix=endpoints.phoenix(url), phoenix_project=PROJECT)
        mended, broken = await export_sessions(config)
        project = until_spans(url, len(mended.spans) + len(broken.spans))
        assert len(nodes(asked(url, "attributes['team'] == 'blue'")["spans"])) == 27
    spans = nodes(project["spans"])
    of_mended = [span for span in spans if span["trace"]["traceId"] == mended.trace_id]
    of_broken = [span for span in spans if span not in of_mended]

    # The tree, and the kind of each span.
    chat, bash = [f"{CHAT}: llm"], "execute_tool Bash: tool"
    approved = [bash, ["agent.approval: chain"]]
    subagent = ["execute_tool Agent: tool", ["invoke_agent general-purpose: agent", chat, [bash], chat]]
    turn = ["agent.execute: agent", chat, approved, chat, subagent, chat, approved, chat]
    assert list(tree(of_mended, None)) == [
        ["Mending: chain", ["sandbox.create: chain"], turn, ["sandbox.cleanup: chain"]]
    ]

    assert of_broken[0]["trace"]["rootSpan"] == {"name": "Mending"}

    # Inputs and outputs.
    shown = {(span["name"], _value(span, "input"), _value(span, "output")) for span in of_mended}
    assert ("agent.execute", "Mend it", "All is mended.") in shown
    (asked_for,) = [given for name, given, answer in shown if (name, answer) == (CHAT, "I will look.")]
    assert asked_for is not None
    assert asked_for.endswith("Mend it")
    assert ("execute_tool Bash", '{"command":"exit 3"}', "Exit code 3") in shown

    assert ("Mending", "Mend it", "All is mended.") in shown
    assert ("Mending", "Break it", "API Error: 400 no such thing") in {
        (span["name"], _value(span, "input"), _value(span, "output")) for span in of_broken
    }

    # Tokens and costs, which Phoenix computes by its own price list.
    first = next(span for span in of_mended if span["name"] == CHAT)
    assert (first["tokenCountPrompt"], first["tokenCountCompletion"]) == (1210, 50)
    assert first["tokenPromptDetails"] == {"cacheRead": 1000, "cacheWrite": 200}
    of_first = (10 * 3 + 1000 * 0.3 + 200 * 3.75 + 50 * 15) / 1e6
    assert first["costSummary"]["total"]["cost"] == pytest.approx(of_first)

    # Users and sessions.
    assert {span["userId"] for span in spans} == {"ada"}
    sessions = nodes(project["sessions"])
    assert {session["sessionId"] for session in sessions} == {
        str((run.spans[-1].attributes or {})["session.id"]) for run in (mended, broken)
    }
    assert [
        (session["userId"], _value(session, "firstInput"), _value(session, "lastOutput")) for session in sessions
    ] == [
        ("ada", "Mend it", "All is mended."),
        ("ada", "Break it", "API Error: 400 no such thing"),
    ]

    # Errors.
    assert of_mended[0]["trace"]["errorsByType"] == [{"exceptionType": "tool_error", "count": 1}]
    assert of_broken[0]["trace"]["errorsByType"] == [{"exceptionType": "invalid_request", "count": 8}]  # 6 requests
    assert [(span["name"], span["statusMessage"]) for span in of_mended if span["statusCode"] == "ERROR"] == [
        ("execute_tool Bash", "Bash: failed")
    ]
    assert {span["statusMessage"] for span in of_broken if span["statusCode"] == "ERROR"} == {
        "API Error: 400 no such thing",
        "invalid_request_error: no such thing",
    }


def _value(span: Json, of: str) -> str | None:
    return span[of] and span[of]["value"]
