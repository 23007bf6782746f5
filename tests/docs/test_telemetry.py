"""docs/OPENTELEMETRY_INTEGRATION.md agrees with the code."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from host_client import AgentOptions, run_agent
from host_client.cli.app import app
from host_client.telemetry.setup._variables import EXPORTERS, SDK_VARIABLES, SETTINGS
from host_client.telemetry.setup.environment import telemetry_config
from tests.support.hosts import host_lab, views
from tests.support.tables import ROOT

DOCUMENT = (ROOT / "docs" / "OPENTELEMETRY_INTEGRATION.md").read_text()
FIRST_WORDS = "gen_ai|agent|chat|tool|sandbox|approval|retry|user|tenant|session|error|http|process|server"
ATTRIBUTE = rf"(?:{FIRST_WORDS})\.[a-z0-9_.]+"
SPANS = {"agent.session", "agent.execute", "agent.approval", "sandbox.create", "sandbox.cleanup"}
SETTERS = (
    "agent_runner/contract/genai.py",
    "agent_runner/contract/spans.py",
    "agent_runner/_gateway_chats.py",
    "agent_runner/_background.py",
    "agent_runner/_turns.py",
    "agent_runner/_run.py",
    "host_client/client/_session.py",
    "host_client/client/options.py",
    "host_client/sandbox/e2b/_sandbox.py",
)
"""All modules that put attributes on spans."""


def reference() -> dict[str, set[str]]:
    """Return the document's attributes of each span, by the first word of the span's name."""
    section = DOCUMENT.partition("\n## Spans\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?:`([a-z_.]+)[^`]*`|(all)) \|(.*)\|$", section, re.MULTILINE)
    return {name or all_: set(re.findall(f"`({ATTRIBUTE})`", cell)) for name, all_, cell in rows}


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def attributes_of_the_code() -> set[str]:
    """Return all attributes that the code puts on spans."""
    texts = {text for name in SETTERS for text in strings(ROOT / name)}
    return {text for text in texts if re.fullmatch(ATTRIBUTE, text)} - SPANS


def test_the_span_reference_has_every_attribute_of_the_code_and_no_other() -> None:
    assert set().union(*reference().values()) == attributes_of_the_code()


@pytest.mark.anyio
async def test_the_spans_of_a_run_have_the_attributes_of_the_reference() -> None:
    script = """
        conversations:
          main:
            replies:
              - tools:
                  - {name: Bash, input: {command: touch made}}
                  - {name: Agent, input: {description: d, prompt: Say hello, run_in_background: false}}
              - text: Done.
          helper:
            when: Say hello
            replies:
              - text: hello
    """
    options = AgentOptions(user_id="ada", tenant_id="acme", tool_content="preview")
    with host_lab(script) as lab:
        result = await run_agent("go", options, approvals="auto", environ=lab.environ)
    rows = reference()
    seen = {span.name.split()[0] for span in views(result.spans)}
    assert seen == set(rows) - {"all"}
    for span in views(result.spans):
        assert set(span.attributes) - rows["all"] - rows[span.name.split()[0]] == set(), span.name


def test_the_example_of_an_environment_is_right_and_names_no_other_variables() -> None:
    text = (ROOT / ".env.example").read_text()
    settings = re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=(.*)$", text, re.MULTILINE)
    assert {name for name, _ in settings} <= {name for row in SETTINGS for name in row.variables} | set(SDK_VARIABLES)
    config, problems = telemetry_config({**dict(settings), "OTEL_EXPORTERS": ",".join(EXPORTERS)})
    assert problems == ()
    assert config.exporters == EXPORTERS


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_examples_in_code_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short, long = examples("python")
    with host_lab("conversations: {main: {replies: [{text: Done.}]}}") as lab:
        for name, value in {**lab.environ, "HOME": str(tmp_path), "OTEL_EXPORTERS": "none"}.items():
            monkeypatch.setenv(name, value)
        names: dict[str, Any] = {}
        exec(compile(short, "short", "exec"), names)
        assert names["result"].text == "Done."
    given = {"public_key": "pk", "secret_key": "sk", "MyExporter": ConsoleSpanExporter, "mask": str.upper}
    with socket.create_server(("localhost", 0)) as server:  # the default port may be another's on this machine
        free = server.getsockname()[1]
    long = long.replace(
        'exporters=("langfuse", "prometheus"),', f"exporters=('langfuse', 'prometheus'), prometheus_port={free},"
    )
    names = dict(given)
    exec(compile(long, "long", "exec"), names)
    assert set(names["telemetry"].counts()) == {"langfuse", "ConsoleSpanExporter"}
    assert names["telemetry"].shutdown()


def test_the_recipe_without_a_key_gives_the_trace_that_it_promises(tmp_path: Path) -> None:
    recipe = DOCUMENT.partition("\n### Without a model's key\n")[2].partition("\n## ")[0]
    script = "set -e\n" + "".join(re.findall(r"```sh\n(.*?)```", recipe, re.DOTALL))
    (promised,) = re.findall(r"```\n(└── .*?)```", recipe, re.DOTALL)
    place = tmp_path / "empty"
    place.mkdir()
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    environ = {"PATH": commands, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(["sh", "-c", script], cwd=place, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert promised in re.sub(r"(?m)(?<=\w) {2,}.*$", "", done.stdout)


def test_every_command_it_names_is_one() -> None:
    named = set(
        re.findall(r"host_client((?: [a-z]+)+)", "\n".join([*examples("sh"), *re.findall("`(.*?)`", DOCUMENT)]))
    )
    assert len(named) >= 5
    for words in named:
        command: Any = typer.main.get_command(app)
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"host_client{words}"
            command = command.commands[word]
