"""The flags of `run` and `resume` that describe the agent have their effect on the real CLI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runner import stdio_server
from tests.support.commands import invoked
from tests.support.hosts import host_lab
from tests.support.runs import clean_environment

NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
SCRIPT = """
conversations:
  main:
    replies:
      - {fail: [{status: 529, times: 3}], tools: [{name: StructuredOutput, input: {number: 4}}]}
"""


def host_client_run(home: Path, environ: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "host_client", "run", "go", "--sandbox", "local", *args]
    env = {**clean_environment(home), **environ, "COLUMNS": "400"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def refused_run(home: Path, *args: str) -> str:
    """Return the message of a run that is refused before anything starts."""
    done = invoked(home, "run", "go", "--sandbox", "local", *args, COLUMNS="400")
    assert done.returncode == 2
    return done.stderr.decode()


def folder_with_skill(folder: Path, text: str) -> str:
    """Write a skill with a description below a folder, and return the folder's path."""
    skill = folder / "skills" / "greet" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text(f"---\nname: greet\ndescription: {text}\n---\nGreet.")
    return str(folder)


@pytest.mark.integration
def test_each_flag_reaches_the_agent(tmp_path: Path) -> None:
    work = tmp_path / "work"
    folder_with_skill(work / ".claude", "Of the project.")
    plugin = tmp_path / "plugin"
    (plugin / ".claude-plugin").mkdir(parents=True)
    (plugin / ".claude-plugin" / "plugin.json").write_text('{"name": "greetings", "version": "1.0.0"}')
    further = tmp_path / "further"
    further.mkdir()
    agents = tmp_path / "agents.json"
    agents.write_text(json.dumps({"reviewer": {"description": "Reviews changes.", "prompt": "You review."}}))
    server = {"command": sys.executable, "args": [stdio_server.__file__]}
    flags = {
        "--model": "claude-opus-4-6",
        "--fallback-model": "claude-haiku-4-5",
        "--effort": "low",
        "--append-system-prompt": "Say XYZ.",
        "--agents": str(agents),
        "--mcp-config": json.dumps({"mcpServers": {"external": server}}),
        "--output-schema": json.dumps(NUMBER),
        "--setting-sources": "user,project",
        "--add-dir": str(further),
        "--plugin": folder_with_skill(plugin, "Of the plugin."),
    }
    given = [part for flag in flags.items() for part in flag]
    with host_lab(SCRIPT) as lab:
        done = host_client_run(tmp_path, lab.environ, "--cwd", str(work), "--json", *given)
        first, last = lab.model.requests[0].body, lab.model.requests[-1].body
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (result,) = (event["data"] for event in events if event["type"] == "result")
    (start,) = (event["data"] for event in events if event["type"] == "start")
    assert result["structured_output"] == {"number": 4}
    assert (first["model"], last["model"]) == ("claude-opus-4-6", "claude-haiku-4-5")
    assert first["output_config"]["effort"] == "low"
    assert "mcp__external__noop" in start["tools"]
    asked = json.dumps(first)
    for text in ("Say XYZ.", "Reviews changes.", str(further), "Of the project.", "Of the plugin."):
        assert text in asked


@pytest.mark.integration
def test_a_flag_overrides_the_file_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    of_file = {"effort": "high", "system_prompt": "Of the file.", "model": "claude-opus-4-6"}
    path.write_text(json.dumps({**of_file, "thinking": {"type": "disabled"}}))
    with host_lab("conversations: {main: {replies: [{text: Hello.}]}}") as lab:
        done = host_client_run(tmp_path, lab.environ, "--options", str(path), "--effort", "low")
        body = lab.model.requests[0].body
    assert done.returncode == 0, done.stderr
    assert (body["output_config"]["effort"], body["model"]) == ("low", "claude-opus-4-6")
    assert body["thinking"] == {"type": "disabled"}
    assert "Of the file." in json.dumps(body["system"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        ('{"effort": "huge"}', "effort takes one of low, medium, high, xhigh, max"),
        ('{"hooks": {}}', "hooks cannot be set here. `open_session(hooks=…)` takes them"),
    ],
)
def test_a_bad_file_is_told_before_a_sandbox_is_made(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "options.json"
    if content is not None:
        path.write_text(content)
    message = refused_run(tmp_path, "--options", str(path))
    assert f"--options {path}: " in message.replace("\n", "") and told in " ".join(message.split())


@pytest.mark.integration
def test_a_text_follows_the_system_prompt_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    preset = {"type": "preset", "preset": "claude_code", "append": "Of the file."}
    path.write_text(json.dumps({"system_prompt": preset}))
    with host_lab("conversations: {main: {replies: [{text: Hello.}]}}") as lab:
        args = ("--options", str(path), "--append-system-prompt", "Of the flag.")
        done = host_client_run(tmp_path, lab.environ, *args)
        system = json.dumps(lab.model.requests[0].body["system"])
    assert done.returncode == 0, done.stderr
    assert "Of the file." in system and "Of the flag." in system
    path.write_text('{"system_prompt": "Of the file."}')
    assert "--append-system-prompt follows Claude Code's own system prompt" in refused_run(tmp_path, *args)


@pytest.mark.integration
def test_an_answer_of_any_schema_is_printed_whole(tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(60)]
    answer = json.dumps({"value": words})
    schema = json.dumps({"type": "array", "items": {"type": "string"}})
    script = f"conversations: {{main: {{replies: [{{tools: [{{name: StructuredOutput, input: {answer}}}]}}]}}}}"
    with host_lab(script) as lab:
        done = host_client_run(tmp_path, lab.environ, "--output-schema", schema)
    assert done.returncode == 0, done.stderr
    assert json.dumps({"value": words}, indent=2) in done.stdout


BAD: list[tuple[str, str, str]] = [
    ("--effort", "huge", "--effort: Invalid enum value 'huge'. --effort takes one of low, medium, high"),
    ("--setting-sources", "user,all", "Invalid enum value 'all'. --setting-sources takes some of user, project, local"),
    ("--agents", "[]", "--agents []: No such file or directory"),
    ("--agents", "{", "--agents: takes a JSON object or a file with one (Expecting"),
    ("--agents", '{"a": {"description": "d", "prompt": "p", "model": 3}}', "--agents[...].model: Expected a text"),
    ("--attribute", "model: x", "--attribute 'model: x': takes name=value"),
    ("--agents", '{"a": {"prompt": "p"}}', "missing required field `description`. --agents takes {"),
    ("--output-schema", "/nowhere.json", "--output-schema /nowhere.json: No such file or directory"),
    ("--mcp-config", '{"a": {"type": "http"}}', "an MCP server of type http takes `url`"),
    ("--mcp-config", '{"mcpServers": []}', "--mcp-config takes servers by name, such as {"),
]


@pytest.mark.parametrize(("flag", "value", "told"), BAD)
def test_a_bad_value_is_told_with_the_name_of_the_flag(tmp_path: Path, flag: str, value: str, told: str) -> None:
    message = refused_run(tmp_path, flag, value)
    assert f"host_client run: {flag}" in message and told in message


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text("[1]")
    message = refused_run(tmp_path, "--output-schema", str(path)).strip()
    assert message == "host_client run: --output-schema: takes a JSON object or a file with one, not list"


@pytest.mark.parametrize("given", [["--resume", "x"], ["--options", '{"resume": "x"}']], ids=["flag", "file"])
def test_a_conversation_to_resume_needs_a_kept_directory(tmp_path: Path, given: list[str]) -> None:
    flag, value = given
    if flag == "--options":
        path: Any = tmp_path / "options.json"
        path.write_text(value)
        value = str(path)
    assert "host_client run: --resume needs --keep DIRECTORY" in refused_run(tmp_path, flag, value)
