"""The options of a run: each takes effect, and an invalid value is refused where it is passed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from agent_runner._config import load_config
from agent_runner.contract.sdk_options import SdkOptions
from agent_runner.contract.trace_context import TraceContext
from host_client import AgentOptions, LocalSandbox, Whereabouts, open_session, run_agent, take_over
from host_client.client.options import OPTION_FORMS, runner_environment
from host_client.errors import ConfigurationError
from host_client.sandbox import SandboxInfo
from host_client.telemetry import TelemetryConfig, root_of
from tests.support.hosts import host_lab

pytestmark = pytest.mark.anyio
INFO = SandboxInfo(id="local-1", kind="local", work="/nowhere", journal="/nowhere/journal")


async def test_a_busy_model_is_asked_again_as_often_as_the_options_say() -> None:
    with host_lab("conversations: {main: {replies: [{fail: [{status: 529, times: 99}]}]}}") as lab:
        result = await run_agent("go", AgentOptions(max_retries=1), environ=lab.environ)
        assert len(lab.model.requests) == 2
    assert result.error_type == "overloaded"


def test_the_number_of_retries_is_the_clis_own_variable_and_goes_before_the_hosts() -> None:
    def retries(options: AgentOptions) -> str:
        context, info = TraceContext("a" * 32, "b" * 16), SandboxInfo(id="x", kind="local", work="/w", journal="/j")
        environ = {"CLAUDE_CODE_MAX_RETRIES": "7"}
        return runner_environment(options, "s", environ, context, info)["CLAUDE_CODE_MAX_RETRIES"]

    assert retries(AgentOptions()) == "7"
    assert retries(AgentOptions(max_retries=0)) == "0"


@pytest.mark.parametrize("name", ["require_mcp", "verbatim_prompts", "deep_trace"])
def test_a_switch_is_a_variable_of_the_runner_only_where_it_is_on(name: str) -> None:
    """An old runner ignores the variable."""
    context, info = TraceContext("a" * 32, "b" * 16), SandboxInfo(id="x", kind="local", work="/w", journal="/j")
    assert f"AGENT_{name.upper()}" not in runner_environment(AgentOptions(), "s", {}, context, info)
    switch: dict[str, Any] = {name: True}
    switched_on = runner_environment(AgentOptions(**switch), "s", {}, context, info)
    assert getattr(load_config(switched_on, [], {}), name) is True


SDK_SERVER = {"calc": {"type": "stdio", "command": "calc"}}
RIGHT: dict[str, Any] = {
    "model": "sonnet",
    "allowed_tools": ("Read", "Bash(git log:*)"),
    "disallowed_tools": ("WebFetch",),
    "permission_mode": "plan",
    "max_turns": 3,
    "max_budget_usd": 0.5,
    "max_retries": 0,
    "verbatim_prompts": True,
    "mcp_config": "{}",
    "mcp_servers": {"calc": "my_tools:server"},
    "require_mcp": True,
    "resume": "1-2-3",
    "user_id": "ada",
    "tenant_id": "acme",
    "user_tier": "pro",
    "attributes": {"org": "acme"},
    "approval_timeout": 1.5,
    "background_timeout": 2,
    "content": "full",
    "tool_content": "preview",
    "deep_trace": True,
    "messages": "partial",
    "env": {"LANG": "C"},
}


CHECKED_BY_THE_RUNNERS_RULES = {"mcp_servers"}


def test_every_option_is_tried_here() -> None:
    of_sdk = {field.name for field in fields(AgentOptions)} & set(SdkOptions.__struct_fields__)
    assert set(RIGHT) == set(OPTION_FORMS)
    assert set(OPTION_FORMS) | of_sdk | {"output_type"} == {field.name for field in fields(AgentOptions)}
    assert of_sdk == set(SdkOptions.__struct_fields__)


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - CHECKED_BY_THE_RUNNERS_RULES))
def test_an_option_of_its_type_is_taken_and_of_another_refused(name: str) -> None:
    assert getattr(AgentOptions(**{name: RIGHT[name]}), name) == RIGHT[name]
    wrong_ones: tuple[Any, ...] = (object(), b"x", [b"x"], {"x": 1}, str)
    for wrong in wrong_ones:
        with pytest.raises(ConfigurationError, match=f"^{name} takes .*, not "):
            AgentOptions(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("allowed_tools", "Bash", """such as ("Read", "Bash(git log:*)"), not 'Bash'"""),
        ("allowed_tools", ("Bash", 3), 'such as ("Read", "Bash(git log:*)"), not a tuple with an int'),
        ("mcp_servers", ["calc"], "mcp_servers takes servers by name, such as"),
        ("mcp_servers", {"calc": 3}, 'servers by name: {"command": "…"}, {"type": "http", "url": "https://…"} or'),
        ("mcp_servers", {"a,b": "m:a"}, "a,b: names and values cannot hold a comma, names no '='"),
        ("system_prompt", 3, 'system_prompt takes a text, or {"type": "preset"'),
        ("tools", "Read", 'tools takes names, such as ["Read", "Bash"]'),
        ("effort", "huge", "effort takes one of low, medium, high, xhigh, max"),
        ("agents", {"a": {"prompt": "p"}}, 'agents takes {"name": {"description": "when to use it"'),
        ("extra_args", {"print": None}, "extra_args: --print is set by the runner or by another option"),
        (
            "mcp_config",
            SDK_SERVER,
            """'{"calc": {"command": "my-server"}}', or the path of such a file, not {'calc': dict}""",
        ),
        ("max_turns", 1.5, "max_turns takes a whole number above 0, not 1.5"),
        ("max_turns", True, "max_turns takes a whole number above 0, not True"),
        ("max_budget_usd", float("nan"), "max_budget_usd takes a number above 0, not nan"),
        ("max_budget_usd", "1", "max_budget_usd takes a number above 0, not '1'"),
        ("approval_timeout", None, "approval_timeout takes a number above 0, not None"),
        ("max_retries", -1, "max_retries takes a whole number of 0 or more, not -1"),
        ("env", {"TOKEN": 3}, "not {'TOKEN': int}"),
        ("content", "all", "content takes one of none, preview, full, not 'all'"),
    ],
)
def test_a_wrong_option_is_told_with_the_right_form(name: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        AgentOptions(**{name: value})
    assert told in str(refused.value)


def test_lists_and_whole_numbers_are_taken_for_tuples_and_numbers() -> None:
    assert AgentOptions(allowed_tools=["Read"], max_budget_usd=1).allowed_tools == ("Read",)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"approvals": "yes"}, "approvals takes one of ask, auto, deny, or an async function of the request"),
        ({"approvals": True}, "approvals takes one of ask, auto, deny, or"),
        ({"prompt": b"go"}, "prompt takes a text, not a bytes"),
        ({"options": {"model": "sonnet"}}, "options takes AgentOptions, such as"),
        (
            {"sandbox": "e2b"},
            "such as LocalSandbox() or E2BSandbox(environ=os.environ), not 'e2b'",
        ),
        ({"sandbox": LocalSandbox}, "sandbox takes a sandbox, such as LocalSandbox() or"),
        ({"upload": "project"}, """upload takes a path, such as Path("project"), not 'project'"""),
        (
            {"telemetry": TelemetryConfig()},
            "takes what initialize_telemetry() returns, not a TelemetryConfig",
        ),
        ({"environ": {"ANTHROPIC_API_KEY": None}}, "not {'ANTHROPIC_API_KEY': NoneType}"),
        ({"traceparent": 1}, "traceparent takes a text, not 1"),
    ],
)
async def test_a_wrong_argument_is_told_before_anything_is_made(arguments: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"prompt": "go", "environ": {}, **arguments}
    with pytest.raises(ConfigurationError) as of_run:
        await run_agent(**given)
    with pytest.raises(ConfigurationError) as of_session:
        async with open_session(**given):
            raise AssertionError("a session was opened")
    assert told in str(of_run.value)
    assert str(of_session.value) == str(of_run.value)


async def test_take_over_refuses_wrong_arguments_too() -> None:
    with pytest.raises(ConfigurationError, match=r"^approvals takes one of ask, auto, deny"):
        async with take_over(
            Whereabouts(run_id="r", info=INFO, process_id="1", trace_ids=()),
            AgentOptions(),
            session_id="s",
            root=root_of(),
            seen_seq=0,
            sandbox=LocalSandbox(),
            approvals="yes",  # pyright: ignore[reportArgumentType]
        ):
            raise AssertionError("a session was taken over")


async def test_a_callback_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^on_event takes a function, not 'print'$"):
        await run_agent("go", environ={}, on_event="print")  # pyright: ignore[reportArgumentType]
