"""Options of the Claude Agent SDK come in one JSON document, and have their effect on the real CLI."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from claude_agent_sdk import AgentDefinition as AgentOfSdk
from claude_agent_sdk import ClaudeAgentOptions
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from agent_runner._config import ConfigError, load_config
from agent_runner.contract import protocol
from agent_runner.contract.sdk_options import (
    FORMS,
    OWN_ARGUMENTS,
    REFUSED,
    PresetPrompt,
    SdkOptions,
    convert_options,
    read_options,
)
from tests.support.runs import MODEL, Finished, Lab

MakeLab = Callable[[str], Lab]

HELLO = "conversations: {main: {replies: [{text: Hello.}]}}"
BASH = """
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: "echo $GREETING"}}]
      - {text: Done.}
"""
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}


def run(lab: Lab, options: dict[str, Any], *args: str) -> Finished:
    """Run one turn with a document of options."""
    return lab.run("--prompt", "go", *args, env={"AGENT_OPTIONS": json.dumps(options)})


def test_every_field_of_the_sdk_is_taken_or_refused_with_a_reason() -> None:
    taken = set(SdkOptions.__struct_fields__)
    assert taken | REFUSED.keys() == {field.name for field in dataclasses.fields(ClaudeAgentOptions)}
    assert not taken & REFUSED.keys()
    assert FORMS.keys() == taken


def test_extra_args_cannot_have_the_arguments_that_the_sdk_sets() -> None:
    source = inspect.getsource(SubprocessCLITransport)
    arguments = set(re.findall(r'"--([A-Za-z-]+)[="]', source))
    assert len(arguments) > 30
    assert arguments - OWN_ARGUMENTS == set()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[]", "Expected an object, got a list"),
        ('{"hooks": {}}', "hooks cannot be set here. `open_session(hooks=…)` takes them"),
        ('{"colour": 1}', "the SDK has no option 'colour'"),
        ('{"effort": "huge"}', "effort: Invalid enum value 'huge'. effort takes one of low, medium, high, xhigh, max"),
        ('{"agents": {"a": {"description": "d"}}}', "missing required field `prompt`. agents takes {"),
        ('{"agents": {"a": {"description": "d", "prompt": "p", "colour": 1}}}', "unknown field `colour`"),
        ('{"mcp_servers": {"a": {"type": "http"}}}', "an MCP server of type http takes `url`"),
        ('{"mcp_servers": {"a": {"command": "a", "url": "b"}}}', "an MCP server of type stdio takes `command`"),
        ('{"thinking": {"type": "enabled"}}', "budget_tokens belongs to thinking of type enabled"),
        ('{"tools": "Read"}', 'tools: Expected an object or a list, got a text. tools takes names, such as ["Read"'),
        ('{"extra_args": {"input-format": "text"}}', "extra_args: --input-format is set by the runner or by"),
        ('{"extra_args": {"continue": null}}', "extra_args: --continue is set by the runner or by another option"),
        ('{"extra_args": {"--debug": null}}', "extra_args: '--debug': takes the names of arguments without dashes"),
        ('{"extra_args": {"input-format=text": null}}', "extra_args: 'input-format=text': takes the names"),
        ('{"extra_args": {"": null}}', "extra_args: '': takes the names"),
        ('{"task_budget": {"total": 0}}', "task_budget.total: Expected a whole number >= 1. task_budget takes {"),
        ('{"max_turns": 0}', "max_turns: Expected a whole number >= 1. max_turns takes a whole number above 0"),
        ('{"max_budget_usd": -1}', "max_budget_usd takes a number above 0"),
    ],
)
def test_a_bad_document_gets_one_clear_error(document: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_options(document)
    assert message in str(raised.value)


def test_a_deeply_nested_document_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        read_options('{"output_format": {"type": "json_schema", "schema": {"a": ' + "[" * 100_000)


def test_the_error_of_a_run_names_the_setting_and_shows_no_content(make_lab: MakeLab) -> None:
    document = '{"env": {"KEY": "secret"}, "effort": "huge"}'
    done = make_lab(HELLO).run("--prompt", "go", env={"AGENT_OPTIONS": document})
    assert done.exit_code == 2
    message = done.one(protocol.Error).data.message
    assert message.startswith("AGENT_OPTIONS: effort: ") and "secret" not in message


@pytest.mark.parametrize("text", ["'{}'", '[{"env": {"KEY": "secret"}}]', "\ufeff{}", "secret" * 100])
def test_a_text_that_is_no_document_is_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config({"AGENT_OPTIONS": text}, (), {})
    assert str(raised.value).startswith("AGENT_OPTIONS: takes a JSON object or the path of one (")
    assert "secret" not in str(raised.value) and "{" not in str(raised.value)


def test_a_document_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text('{"fallback_model": "haiku"}')
    assert load_config({}, ("--options", str(path)), {}).options.fallback_model == "haiku"
    with pytest.raises(ConfigError, match=r"--options: takes a JSON object or the path of one \(No such file"):
        load_config({}, ("--options", str(tmp_path / "none.json")), {})


def test_another_setting_overrides_the_document() -> None:
    document = {"model": "opus", "max_turns": 3, "allowed_tools": ["Read"], "session_id": "of-claude"}
    config = load_config({"AGENT_OPTIONS": json.dumps(document), "AGENT_MODEL": "haiku"}, ("--max-turns", "5"), {})
    assert (config.model, config.max_turns, config.allowed_tools) == ("haiku", 5, ("Read",))
    assert config.session_id is None, "the session's id in spans has the same name"


def test_objects_of_the_sdk_are_taken_too() -> None:
    agent = AgentOfSdk(description="d", prompt="p", tools=["Read"])
    options = convert_options({"agents": {"a": agent}, "system_prompt": {"type": "preset", "preset": "claude_code"}})
    assert options.agents is not None and options.agents["a"].tools == ["Read"]
    assert options.system_prompt == PresetPrompt(preset="claude_code")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2222}, "task_budget": {"total": 50_000}},
            {"thinking": {"budget_tokens": 2222}, "output_config": {"task_budget": {"total": 50_000}}},
        ),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        ({"max_thinking_tokens": 3333}, {"thinking": {"budget_tokens": 3333}}),
        (
            {"model": "claude-opus-4-6", "effort": "low"},
            {"output_config": {"effort": "low"}, "model": "claude-opus-4-6"},
        ),
    ],
)
def test_an_option_changes_the_model_request(
    make_lab: MakeLab, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    lab = make_lab(HELLO)
    options = {"model": MODEL, **options}
    done = lab.run("--prompt", "go", env={"AGENT_OPTIONS": json.dumps(options), "AGENT_MODEL": ""})
    assert done.exit_code == 0
    assert set(done.one(protocol.Start).data.sdk_options) == options.keys()
    assert includes(lab.model.requests[0].body, expected)


def includes(value: Any, expected: Any) -> bool:
    """Return whether a JSON value has at least the expected parts."""
    if isinstance(expected, dict):
        parts = cast("dict[str, Any]", expected)
        return all(includes(value[key], each) for key, each in parts.items())
    return value == expected


def test_options_change_headers(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    assert run(lab, {"betas": ["context-1m-2025-08-07"], "client_app": "my-app/1.0"}).exit_code == 0
    headers = {name.lower(): value for name, value in lab.model.requests[0].headers.items()}
    assert "context-1m-2025-08-07" in headers["anthropic-beta"]
    assert "client-app/my-app/1.0" in headers["user-agent"]


def skill_of(folder: Path, description: str) -> None:
    """Write the skill ``greet`` into a folder with skills."""
    (folder / "skills" / "greet").mkdir(parents=True)
    (folder / "skills" / "greet" / "SKILL.md").write_text(f"---\nname: greet\ndescription: {description}\n---\nGreet.")


@pytest.mark.parametrize(
    "options",
    [
        {"system_prompt": {"type": "preset", "preset": "claude_code", "append": "Say XYZ."}},
        {"system_prompt": {"type": "custom", "prompt": "Say XYZ."}},
        {"system_prompt": "Say XYZ."},
        {"system_prompt": {"type": "file", "path": "prompt.md"}},
        {"skills": ["greet"]},
        {"skills": "all"},
    ],
    ids=["append", "custom", "text", "file", "skills", "all"],
)
def test_an_option_brings_text_before_the_model(make_lab: MakeLab, options: dict[str, Any]) -> None:
    lab = make_lab(HELLO)
    (lab.cwd / "prompt.md").write_text("Say XYZ.")
    skill_of(lab.cwd / ".claude", "Say XYZ.")
    assert run(lab, options).exit_code == 0
    assert "Say XYZ." in json.dumps(lab.model.requests[0].body)


def test_several_options_each_bring_text_before_the_model(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    (lab.cwd / "prompt.md").write_text("Of extra_args.")
    skill_of(lab.cwd / ".claude", "Of the project.")
    skill_of(lab.cwd / "plugin", "Of the plugin.")
    about = lab.cwd / "plugin" / ".claude-plugin"
    about.mkdir()
    (about / "plugin.json").write_text('{"name": "greetings", "version": "1.0.0", "description": "d"}')
    further = lab.home / "A further directory."
    further.mkdir()
    options = {
        "extra_args": {"append-system-prompt-file": "prompt.md"},
        "agents": {"reviewer": {"description": "Of the agent.", "prompt": "p"}},
        "add_dirs": [str(further)],
        "setting_sources": ["project"],
        "plugins": [{"type": "local", "path": "plugin"}],
    }
    assert run(lab, options).exit_code == 0
    asked = json.dumps(lab.model.requests[0].body)
    for text in ("Of extra_args.", "Of the agent.", str(further), "Of the project.", "Of the plugin."):
        assert text in asked


def test_without_such_an_option_the_text_is_not_there(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    skill_of(lab.cwd / ".claude", "Say XYZ.")
    assert run(lab, {}).exit_code == 0
    assert "Say XYZ." not in json.dumps(lab.model.requests[0].body)


@pytest.mark.parametrize("skills", [["greet"], []])
def test_only_the_named_skills_are_shown(make_lab: MakeLab, skills: list[str]) -> None:
    lab = make_lab(HELLO)
    for name, text in (("greet", "Say XYZ."), ("part", "Say ABC.")):
        folder = lab.cwd / ".claude" / "skills" / name
        folder.mkdir(parents=True)
        (folder / "SKILL.md").write_text(f"---\nname: {name}\ndescription: {text}\n---\nGo.")
    assert run(lab, {"skills": skills}).exit_code == 0
    asked = json.dumps(lab.model.requests[0].body)
    assert ("Say XYZ." in asked, "Say ABC." in asked) == (bool(skills), False)


def test_the_settings_of_a_project_are_read_for_skills_only_if_none_are_named() -> None:
    def sources(document: dict[str, Any]) -> tuple[str, ...]:
        return load_config({"AGENT_OPTIONS": json.dumps(document)}, (), {}).setting_sources

    assert sources({"skills": ["greet"]}) == ("user", "project")
    assert sources({"skills": ["greet"], "setting_sources": []}) == ()


def test_directories_can_be_paths_and_what_is_no_json_is_refused() -> None:
    assert convert_options({"add_dirs": [Path("/srv")]}).add_dirs == ["/srv"]
    schema: dict[str, Any] = {"type": "object", "properties": {"a": object()}}
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        convert_options({"output_format": {"type": "json_schema", "schema": schema}})
    with pytest.raises(ValueError, match=r"settings: has 200,0.. characters as JSON; at most 120,000 fit"):
        convert_options({"settings": "x" * 200_000})


def test_a_name_that_the_sdk_refuses_is_a_bad_configuration(make_lab: MakeLab) -> None:
    done = run(make_lab(HELLO), {"skills": ["a,b"]})
    error = done.one(protocol.Error).data
    assert (done.exit_code, error.error_type, error.retryable) == (2, "invalid_request", False)
    assert "Invalid skill name 'a,b'" in error.message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"settings": "/nowhere.json"}, "Settings file not found: /nowhere.json"),
        ({"system_prompt": {"type": "file", "path": "/nowhere.md"}}, "System prompt file not found: /nowhere.md"),
        ({"session_id": "no-uuid"}, "Invalid session ID. Must be a valid UUID."),
        ({"extra_args": {"nonsense": None}}, "unknown option '--nonsense'"),
        (
            {"output_format": {"type": "json_schema", "schema": {**NUMBER, "x-note": 1}}},
            '--json-schema is not a valid JSON Schema: strict mode: unknown keyword: "x-note"',
        ),
    ],
    ids=["settings", "system_prompt", "session_id", "extra_args", "output_format"],
)
def test_an_option_with_which_the_cli_does_not_start_is_a_bad_configuration(
    make_lab: MakeLab, options: dict[str, Any], told: str
) -> None:
    done = run(make_lab(HELLO), options)
    error = done.one(protocol.Error).data
    assert (done.exit_code, error.error_type, error.retryable) == (2, "invalid_request", False)
    assert error.message == f"Claude Code does not start with these options: {told}"


def tools_of(lab: Lab) -> set[str]:
    return {tool.get("name", "") for tool in lab.model.requests[0].body["tools"]}


def test_tools_limits_the_tools_that_exist(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    assert run(lab, {"tools": ["Read", "Bash"]}).exit_code == 0
    assert tools_of(lab) == {"Read", "Bash"}


def test_an_mcp_server_is_a_program_in_the_document(make_lab: MakeLab) -> None:
    program = str(Path(__file__).with_name("stdio_server.py"))
    lab = make_lab(HELLO)
    servers = {"external": {"command": sys.executable, "args": [program]}, "lab": "tests.runner.mcp_servers:lab"}
    done = run(lab, {"mcp_servers": servers})
    assert done.exit_code == 0
    assert {"mcp__external__noop", "mcp__lab__add"} <= set(done.one(protocol.Start).data.tools)


@pytest.mark.parametrize("strict", [None, False])
def test_servers_of_a_project_are_used_only_where_that_is_allowed(make_lab: MakeLab, strict: bool | None) -> None:
    program = str(Path(__file__).with_name("stdio_server.py"))
    lab = make_lab(HELLO)
    (lab.cwd / ".mcp.json").write_text(
        json.dumps({"mcpServers": {"external": {"command": sys.executable, "args": [program]}}})
    )
    settings = '{"enableAllProjectMcpServers": true}'
    options = {"setting_sources": ["project"], "settings": settings, "strict_mcp_config": strict}
    done = run(lab, {name: value for name, value in options.items() if value is not None})
    assert done.exit_code == 0
    assert ("mcp__external__noop" in done.one(protocol.Start).data.tools) is (strict is False)


def test_env_reaches_the_tools(make_lab: MakeLab) -> None:
    done = run(make_lab(BASH), {"env": {"GREETING": "hello"}, "allowed_tools": ["Bash"]})
    assert done.one(protocol.ToolResult).data.content == "hello"


@pytest.mark.parametrize("as_file", [False, True])
def test_settings_are_a_text_or_a_file(make_lab: MakeLab, as_file: bool) -> None:
    lab = make_lab(BASH)
    settings = '{"permissions": {"deny": ["Bash"]}}'
    (lab.cwd / "settings.json").write_text(settings)
    done = run(lab, {"settings": "settings.json" if as_file else settings, "allowed_tools": ["Bash"]})
    assert done.one(protocol.ToolResult).data.error_type == "permission_denied"


def test_claude_codes_own_sandbox_is_switched_on(make_lab: MakeLab) -> None:
    done = run(make_lab(HELLO), {"sandbox": {"enabled": True}})
    assert any("Sandbox disabled: sandbox is enabled but" in each.data.text for each in done.of(protocol.Log))


def test_a_fallback_model_answers_where_the_first_is_overloaded(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hello., fail: [{status: 529, times: 3}]}]}}")
    done = run(lab, {"fallback_model": "claude-haiku-4-5"})
    assert done.one(protocol.Result).data.result == "Hello."
    assert lab.model.requests[-1].body["model"] == "claude-haiku-4-5"


SESSION = "11111111-2222-4333-8444-555555555555"


def test_a_conversation_has_the_given_id_and_can_be_forked_and_cut(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: One.}, {text: Two.}, {text: Three.}, {text: Four.}]}}")
    first = run(lab, {"session_id": SESSION})
    assert first.one(protocol.Start).data.session_id == SESSION
    again = run(lab, {"resume": SESSION})
    assert again.one(protocol.Start).data.session_id == SESSION
    assert "One." in str(lab.model.requests[1].body["messages"])
    fork = run(lab, {"resume": SESSION, "fork_session": True})
    assert fork.one(protocol.Start).data.session_id != SESSION
    assert "Two." in str(lab.model.requests[2].body["messages"])
    answer = next(line for line in transcript(lab) if line["type"] == "assistant" and "One." in str(line["message"]))
    cut = run(lab, {"resume": SESSION, "fork_session": True, "resume_session_at": answer["uuid"]})
    assert cut.exit_code == 0
    costs = [each.one(protocol.Result).data.cost_usd for each in (first, again, fork, cut)]
    assert costs[0] > 0 and costs == [costs[0]] * 4, "each run has the cost of its own turn"
    asked = str(lab.model.requests[3].body["messages"])
    assert "One." in asked and "Two." not in asked
    drops = {"resume": SESSION, "resume_session_at": answer["uuid"], "resume_drops_turn": answer["uuid"]}
    refused = run(lab, drops)
    assert refused.exit_code != 0
    error = refused.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert "Resume rejected by --resume-drops-turn" in error.message


def transcript(lab: Lab) -> list[dict[str, Any]]:
    """Return the entries of the conversation `SESSION`."""
    (path,) = lab.home.rglob(f"{SESSION}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_are_checkpointed(make_lab: MakeLab) -> None:
    write = "{tools: [{name: Write, input: {file_path: made.txt, content: x}}]}"
    lab = make_lab(f"conversations: {{main: {{replies: [{write}, {{text: Done.}}]}}}}")
    done = run(lab, {"enable_file_checkpointing": True, "session_id": SESSION, "permission_mode": "acceptEdits"})
    assert done.exit_code == 0
    assert any(line["type"] == "file-history-snapshot" for line in transcript(lab))


def output(number: object) -> str:
    return f"{{tools: [{{name: StructuredOutput, input: {{number: {number}}}}}]}}"


def test_structured_output_is_in_the_result(make_lab: MakeLab) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{output('many')}, {output(4)}]}}}}")
    done = run(lab, {"output_format": {"type": "json_schema", "schema": NUMBER}})
    assert done.exit_code == 0
    assert done.one(protocol.Result).data.structured_output == {"number": 4}
    assert [each.data.is_error for each in done.of(protocol.ToolResult)] == [True, False]
    assert not done.of(protocol.ApprovalRequest)


@pytest.mark.parametrize("replies", [["{text: Four.}"] * 2, [output("many")] * 5], ids=["never", "never-right"])
def test_a_run_without_the_structured_output_that_was_asked_for_fails(make_lab: MakeLab, replies: list[str]) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{', '.join(replies)}]}}}}")
    done = run(lab, {"output_format": {"type": "json_schema", "schema": NUMBER}})
    assert done.exit_code == 1
    result = done.one(protocol.Result).data
    assert (result.is_error, result.error_type, result.structured_output) == (True, "tool_error", None)
    assert "structured output" in done.one(protocol.Error).data.message
    assert done.span("agent.execute").attributes["error.type"] == "tool_error"
