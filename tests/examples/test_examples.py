"""Every example runs as its user runs it, against a stand-in of where it sends to."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.collector import Collector
from tests.support.runs import clean_environment
from tests.support.tables import ROOT
from tests.support.tool_server import SECRET

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ONE_TOOL = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "echo Ada wrote this", description: Say it}}]
          - text: All tests pass.
          - text: Faster now.
"""
SEARCH = """
    conversations:
      main:
        replies:
          - tools: [{name: mcp__host__search_orders, input: {customer: Ada}}]
          - tools: [{name: Bash, input: {command: rm -f orders.sqlite}}]
          - text: Pens.
"""


class Example:
    """Runs one of them in a folder of its own."""

    def __init__(self, home: Path, model: ScriptedModel) -> None:
        self._home = home
        self._model = model

    def __call__(self, name: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = clean_environment(self._home, self._model.url, PYTHONPATH=str(ROOT), **environ)
        command = [sys.executable, str(ROOT / "examples" / name), *args]
        done = subprocess.run(command, cwd=self._home, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    with ScriptedModel(parse_script(ONE_TOOL)) as model:
        yield Example(tmp_path, model)
        assert model.unexpected == []


def test_langfuse_gets_the_trace(example: Example) -> None:
    with Collector() as langfuse:
        keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-a", "LANGFUSE_SECRET_KEY": "sk-lf-b"}
        done = example("langfuse.py", "Make the tests pass", LANGFUSE_BASE_URL=langfuse.url, **keys)
    (root,) = langfuse.named("agent.session")
    assert done.stdout == "All tests pass.\n"
    assert f"trace {root.trace_id}, delivered" in done.stderr
    assert root.attributes["langfuse.trace.metadata.team"] == "platform"
    assert {span.attributes["user.id"] for span in langfuse.spans} == {"ada"}


def test_signoz_gets_both_turns_and_metrics(example: Example) -> None:
    with Collector() as signoz:
        done = example("signoz.py", "Find the slowest test", "Make it faster", SIGNOZ_OTLP_ENDPOINT=signoz.url)
    assert done.stdout == "All tests pass.\nFaster now.\n"
    assert len(signoz.named("agent.execute")) == 2
    assert {span.attributes["user.tier"] for span in signoz.spans} == {"enterprise"}
    assert {request.path for request in signoz.requests} == {"/v1/traces", "/v1/metrics"}


def test_the_console_shows_text_as_it_comes_and_the_trace(example: Example) -> None:
    done = example("console_streaming.py", "What is in this folder?")
    assert "[Bash] {'command': 'echo Ada wrote this'" in done.stdout
    assert "All tests pass." in done.stdout
    assert "agent.session" in done.stderr
    assert "execute_tool Bash" in done.stderr


def test_the_agent_searches_a_database_of_the_host(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "orders.sqlite") as database:
        database.execute("CREATE TABLE orders (id, customer, item, price)")
        database.execute("INSERT INTO orders VALUES (1, 'Ada', 'pens', 3), (2, 'Bob', 'ink', 4)")
    with ScriptedModel(parse_script(SEARCH)) as model:
        done = Example(tmp_path, model)("host_tools.py", "orders.sqlite", "What has Ada ordered?")
        found, denied = (str(request.body["messages"][-1]) for request in model.requests[1:])
    assert '[{"id":1,"item":"pens","price":3}]' in found
    assert "Do not remove files." in denied
    assert done.stdout == "Pens.\n"


def test_an_exporter_of_ones_own_gets_what_the_sanitizer_leaves(example: Example, tmp_path: Path) -> None:
    example("custom_exporter.py", "calls.jsonl", "Make the tests pass")
    (call,) = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert (call["gen_ai.tool.name"], call["tool.is_error"]) == ("Bash", False)
    assert call["tool.execution_ms"] > 0
    assert "echo [name] wrote this" in call["gen_ai.tool.call.arguments"]


def test_every_example_is_run() -> None:
    text = Path(__file__).read_text()
    assert [
        path.name for path in EXAMPLES if f'"{path.name}"' not in text and f"examples.{path.stem} import" not in text
    ] == []
    assert len(EXAMPLES) == 8


def test_a_batch_prints_a_line_for_each_prompt(tmp_path: Path) -> None:
    script = """
        conversations:
          one: {when: first, replies: [{text: One.}]}
          two: {when: second, replies: [{text: Two.}]}
    """
    (tmp_path / "prompts.txt").write_text("the first\n\nthe second\n")
    with ScriptedModel(parse_script(script)) as model:
        done = Example(tmp_path, model)("batch.py", "prompts.txt")
    assert [line.rpartition(" (")[0] for line in done.stdout.splitlines()] == ["the first: One.", "the second: Two."]


def test_an_embedded_application_answers_and_denies_what_it_does_not_allow(tmp_path: Path) -> None:
    code = """
from fastapi.testclient import TestClient
from examples.embedded_fastapi import app

answer = TestClient(app).post("/ask", json={"prompt": "go"}, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
print(answer.status_code, answer.json()["text"], answer.json()["denied"], answer.json()["trace_id"])
"""
    script = """
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch made}}]
              - text: It was denied.
    """
    with ScriptedModel(parse_script(script)) as model:
        env = clean_environment(tmp_path, model.url, PYTHONPATH=str(ROOT))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
        )
    assert done.stdout == f"200 It was denied. ['Bash'] {'a' * 32}\n", done.stderr


def test_a_tool_server_answers_signed_calls_alone(tmp_path: Path) -> None:
    code = """
import base64, json, os, time
from fastapi.testclient import TestClient
from host_client.client.http_tools import signature
from examples.tool_server import app

key = base64.b64decode(os.environ["HOST_TOOLS_SECRET"].removeprefix("whsec_"))
body = json.dumps({"tenant_id": "acme", "arguments": {"customer": "Ada"}}).encode()

def status(sent, key=key):
    headers = {"webhook-id": "1", "webhook-timestamp": str(sent), "webhook-signature": signature(key, "1", sent, body)}
    answer = TestClient(app).post("/orders", content=body, headers=headers)
    return answer.status_code, answer.json()

now = int(time.time())
print(status(now), status(now - 600)[0], status(now, b"other")[0], TestClient(app).post("/orders").status_code)
"""
    env = clean_environment(tmp_path, PYTHONPATH=str(ROOT), HOST_TOOLS_SECRET=SECRET)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "(200, ['pens', 'paper']) 401 401 401\n", done.stderr
