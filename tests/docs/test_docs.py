"""Tables, schemas, links and examples of the documents agree with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import encode
from host_client import run_agent
from tests.support.hosts import host_lab
from tests.support.tables import MARKED, ROOT, SCHEMAS, TABLES, filled, schema_text

DOCUMENTS = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("name", MARKED)
def test_the_tables_are_the_codes(name: str) -> None:
    document = (ROOT / name).read_text()
    assert filled(document) == document, "run: python -m tests.support.tables"


def test_every_table_stands_in_some_document() -> None:
    text = "".join((ROOT / name).read_text() for name in MARKED)
    assert {name for name in TABLES if f"<!-- table: {name} -->" not in text} == set()


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_the_codes(name: str) -> None:
    assert (ROOT / name).read_text() == schema_text(name), "run: python -m tests.support.tables"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    text = (ROOT / document).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / document.parent / target).exists()] == []


def test_the_readmes_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().split("\n")) <= 14
    script = """
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch made}}]
              - text: All tests pass.
    """
    with host_lab(script) as lab:
        for name, value in lab.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "made").exists()
    assert capsys.readouterr().out == "All tests pass.\n"


@pytest.mark.anyio
async def test_what_a_run_writes_fits_the_schema() -> None:
    script = """
        conversations:
          main:
            replies:
              - {thinking: Hm., text: First., tools: [{name: Bash, input: {command: touch made}}]}
              - text: Done.
    """
    seen: list[p.AnyEvent] = []
    with host_lab(script) as lab:
        await run_agent("go", approvals="auto", environ=lab.environ, on_event=seen.append)
    schema = p.event_schema()
    for event in seen:
        jsonschema.validate(json.loads(encode(event)), schema)
    assert {event.type for event in seen} >= {"start", "thinking", "tool_use", "approval_request", "result", "end"}


@pytest.mark.parametrize(
    "command",
    [
        p.Prompt(text="x", traceparent="y"),
        p.Approval(approval_id="a", decision="allow", updated_input={"b": 1}, remember=True),
        p.Answer(question_id="q", answers={"Which?": "A"}),
        p.Interrupt(),
        p.SetModel(model="m", requested_by="ada"),
        p.SetPermissionMode(mode="plan"),
        p.StopTask(task_id="t"),
        p.RewindFiles(user_message_id="u"),
        p.ReconnectMcpServer(server_name="s"),
        p.ToggleMcpServer(server_name="s", enabled=False),
        p.GetMcpStatus(),
        p.GetContextUsage(),
        p.Finish(),
        p.Stop(),
    ],
    ids=lambda command: type(command).__name__,
)
def test_every_command_fits_the_schema(command: p.AnyCommand) -> None:
    jsonschema.validate(json.loads(encode(command)), p.command_schema())
