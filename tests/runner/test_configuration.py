"""Each setting can be a variable or an option, and each bad value gives one clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner._config import SETTINGS, Config, ConfigError, RunnerSetting, load_config
from agent_runner.contract import protocol
from agent_runner.contract.callbacks import CallbackDefinitions, HookDefinition
from agent_runner.contract.sdk_options import SdkOptions
from tests.support.account import need_root
from tests.support.runs import Lab

MakeLab = Callable[[str], Lab]

GOOD: dict[str, tuple[str, object]] = {
    "prompt": ("do it", "do it"),
    "model": ("opus", "opus"),
    "cwd": ("/srv", "/srv"),
    "allowed_tools": ("Read, Bash(git log:*,-n 3),mcp__a__b", ("Read", "Bash(git log:*,-n 3)", "mcp__a__b")),
    "disallowed_tools": ("WebFetch,", ("WebFetch",)),
    "permission_mode": ("plan", "plan"),
    "max_turns": ("3", 3),
    "max_budget_usd": ("0.5", 0.5),
    "max_retries": ("0", 0),
    "resume": ("1-2-3", "1-2-3"),
    "approval_timeout": ("1.5", 1.5),
    "background_timeout": ("2", 2.0),
    "heartbeat": ("0.5", 0.5),
    "journal": ("/srv/journal", "/srv/journal"),
    "system_prompt": ("Be brief.", "Be brief."),
    "verbatim_prompts": ("on", True),
    "setting_sources": ("user,project", ("user", "project")),
    "mcp_config": ('{"mcpServers":{}}', '{"mcpServers":{}}'),
    "mcp_servers": ("a=m:x, b=n:y", {"a": "m:x", "b": "n:y"}),
    "require_mcp": ("on", True),
    "user_id": ("u", "u"),
    "session_id": ("s", "s"),
    "tenant_id": ("t", "t"),
    "attributes": ("team=core,tier=1", {"team": "core", "tier": "1"}),
    "content": ("full", "full"),
    "tool_content": ("preview", "preview"),
    "sanitizer": ("mine:clean", "mine:clean"),
    "user": ("nobody", "nobody"),
    "gateway": ("on", "on"),
    "deep_trace": ("on", True),
    "cli_path": ("/opt/claude", "/opt/claude"),
    "options": ('{"effort": "low"}', SdkOptions(effort="low")),
    "messages": ("partial", "partial"),
    "callbacks": (
        '{"hooks": [{"id": "h", "event": "Stop", "timeout": 5}]}',
        CallbackDefinitions(hooks=(HookDefinition(id="h", event="Stop", timeout=5),)),
    ),
}

BAD = [
    ("permission_mode", "yolo", "takes one of default, acceptEdits"),
    ("max_turns", "0", "takes a whole number above 0"),
    ("max_turns", "-1", "takes a whole number above 0"),
    ("max_turns", "1.5", "takes a whole number above 0"),
    ("max_turns", "many", "takes a whole number above 0"),
    ("max_budget_usd", "free", "takes a number above 0"),
    ("max_budget_usd", "inf", "takes a number above 0"),
    ("max_budget_usd", "nan", "takes a number above 0"),
    ("max_retries", "-1", "takes a whole number of 0 or more"),
    ("max_retries", "some", "takes a whole number of 0 or more"),
    ("approval_timeout", "-3", "takes a number above 0"),
    ("setting_sources", "user,remote", "takes one of user, project, local"),
    ("mcp_config", "{not json", "takes a path or a JSON object"),
    ("mcp_servers", "nameless", "takes name=value pairs"),
    ("require_mcp", "true", "takes one of on, off"),
    ("verbatim_prompts", "yes", "takes one of on, off"),
    ("attributes", "=x", "takes name=value pairs"),
    ("content", "some", "takes one of none, preview, full"),
    ("tool_content", "all", "takes one of none, preview, full"),
    ("deep_trace", "1", "takes one of on, off"),
    ("gateway", "yes", "takes one of auto, on, off"),
    ("messages", "yes", "takes one of off, on, partial"),
    ("callbacks", "[]", "not a document of host tools and hooks"),
]


def test_every_setting_is_tried_here() -> None:
    assert set(GOOD) == {setting.field for setting in SETTINGS}


@pytest.mark.parametrize("row", SETTINGS, ids=[row.field for row in SETTINGS])
def test_a_setting_is_read_from_its_variable_and_from_its_option(row: RunnerSetting) -> None:
    text, value = GOOD[row.field]
    assert getattr(load_config({row.variable: text}, [], {}), row.field) == value
    assert getattr(load_config({}, [f"{row.option}={text}"], {}), row.field) == value
    assert getattr(load_config({row.variable: "max"}, [f"{row.option}={text}"], {}), row.field) == value
    assert load_config({row.variable: ""}, [], {}) == Config()


@pytest.mark.parametrize(("field", "text", "why"), BAD)
def test_a_bad_value_names_its_setting_and_says_what_it_takes(field: str, text: str, why: str) -> None:
    row = next(each for each in SETTINGS if each.field == field)
    with pytest.raises(ConfigError) as of_variable:
        load_config({row.variable: text}, [], {})
    with pytest.raises(ConfigError) as of_option:
        load_config({}, [f"{row.option}={text}"], {})
    assert str(of_variable.value).startswith(f"{row.variable}={text!r}: {why}")
    assert str(of_option.value).startswith(f"{row.option}={text!r}: {why}")


def test_an_unknown_option_is_refused_and_none_is_abbreviated() -> None:
    for argv in (["--no-such"], ["--allowed", "x"], ["stray"], ["--model"]):
        with pytest.raises(ConfigError):
            load_config({}, argv, {})


def test_only_the_known_ids_are_taken_from_baggage_and_a_setting_wins() -> None:
    baggage = {"user.id": "b-user", "session.id": "b-session", "tenant.id": "b-tenant", "other": "x"}
    config = load_config({"AGENT_USER_ID": "own"}, [], baggage)
    assert (config.user_id, config.session_id, config.tenant_id) == ("own", "b-session", "b-tenant")


@given(st.lists(st.from_regex(r"[A-Za-z_]{1,8}(\([a-z:*, ]{0,8}\))?", fullmatch=True)))
def test_tool_rules_split_at_commas_outside_parentheses(names: list[str]) -> None:
    assert load_config({"AGENT_ALLOWED_TOOLS": ", ".join(names)}, [], {}).allowed_tools == tuple(names)


@given(st.dictionaries(st.sampled_from([setting.variable for setting in SETTINGS]), st.text(max_size=30)))
def test_any_environment_is_a_configuration_or_a_clear_error(environ: dict[str, str]) -> None:
    try:
        load_config(environ, [], {})
    except ConfigError as error:
        assert any(name in str(error) for name in environ)


@pytest.mark.parametrize(
    ("options", "env", "why"),
    [
        (["--max-turns", "0"], {}, "--max-turns='0': takes a whole number above 0"),
        ([], {"AGENT_CONTENT": "some"}, "AGENT_CONTENT='some': takes one of none, preview, full"),
        (["--what"], {}, "unknown option --what: see agent_runner run --help"),
        (
            ["--mcp-servers", "lab=no.such:thing"],
            {},
            "AGENT_MCP_SERVERS: lab='no.such:thing': takes module:attribute (No module named 'no')",
        ),
        (["--sanitizer", "no.such:thing"], {}, "AGENT_SANITIZER='no.such:thing': takes module:attribute"),
        (["--mcp-config", "/no/such/file"], {}, "AGENT_MCP_CONFIG='/no/such/file': cannot be read as MCP servers"),
        (["--cwd", "/no/such/place"], {}, "AGENT_CWD='/no/such/place': not a directory"),
    ],
)
def test_a_bad_configuration_is_one_error_event_and_exit_code_2(
    make_lab: MakeLab, options: list[str], env: dict[str, str], why: str
) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    done = lab.run("--prompt", "go", *options, env=env)
    assert done.exit_code == 2
    assert done.types == ["error", "end"]
    error = done.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert error.message.startswith(why)
    assert done.one(protocol.End).data == protocol.EndData(reason="misconfigured", exit_code=2)


def test_root_bypasses_permissions_in_a_sandbox_alone(make_lab: MakeLab) -> None:
    need_root()
    lab = make_lab(
        "conversations: {main: {replies: [{tools: [{name: Bash, input: {command: touch x}}]}, {text: Hi.}]}}"
    )
    bypass = ("--prompt", "go", "--permission-mode", "bypassPermissions")
    refused = lab.run(*bypass)
    assert (refused.exit_code, refused.types) == (2, ["error", "end"])
    error = refused.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert "Set IS_SANDBOX=1" in error.message
    assert lab.run(*bypass, env={"IS_SANDBOX": "1"}).exit_code == 0


def run_module(*args: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "agent_runner", *args], capture_output=True, text=True, cwd=root, timeout=60
    )


def test_help_schema_and_version_are_told_on_stdout() -> None:
    shown = run_module("run", "--help")
    assert shown.returncode == 0
    for setting in SETTINGS:
        assert setting.option in shown.stdout
        assert setting.variable in shown.stdout
    assert "usage" in run_module("--help").stdout
    assert run_module("--version").stdout.startswith("agent_runner ")
    assert '"approval_request"' in run_module("schema").stdout
    assert run_module("nonsense").returncode == 2


def test_the_contract_and_the_configuration_need_neither_the_sdk_nor_opentelemetry() -> None:
    heavy = "claude_agent_sdk|mcp|opentelemetry|anyio|asyncio"
    code = (
        "import sys, agent_runner._config, agent_runner.contract.protocol;"
        "import agent_runner.contract.trace_context, agent_runner.contract.lines;"
        f"print([name for name in sys.modules if name.split('.')[0] in {heavy.split('|')!r}])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout == "[]\n"
