"""Options of the Claude Agent SDK reach the agent from the library and the command line, in each sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import AgentDefinition

from agent_runner._config import load_config
from agent_runner.contract.sdk_options import convert_options
from agent_runner.contract.trace_context import TraceContext
from host_client import AgentOptions, open_session, options_from, run_agent
from host_client.client.options import MAX_DOCUMENT, runner_environment
from host_client.errors import ConfigurationError
from host_client.sandbox import SandboxInfo
from tests.compat.recordings import load
from tests.compat.test_old_sandboxes import old_template
from tests.support.hosts import e2b_lab, host_lab

pytestmark = pytest.mark.anyio

NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
STRUCTURED = """
conversations:
  main:
    replies:
      - tools: [{name: StructuredOutput, input: {number: 4}}]
"""
OPTIONS = AgentOptions(
    system_prompt={"type": "preset", "preset": "claude_code", "append": "Say XYZ."},
    agents={"reviewer": AgentDefinition(description="Reviews changes.", prompt="You review.")},
    thinking={"type": "enabled", "budget_tokens": 2222},
    output_format={"type": "json_schema", "schema": NUMBER},
    model="claude-sonnet-4-5",
)


def check(body: dict[str, Any]) -> None:
    """Check that a model request shows `OPTIONS`."""
    assert body["thinking"]["budget_tokens"] == 2222
    assert "Say XYZ." in str(body)
    assert "Reviews changes." in str(body)


async def test_the_library_passes_them_to_a_local_agent() -> None:
    with host_lab(STRUCTURED) as lab:
        result = await run_agent("go", OPTIONS, environ=lab.environ)
        check(lab.model.requests[0].body)
    assert not result.is_error
    assert result.structured_output == {"number": 4}


async def test_the_library_passes_them_to_an_agent_in_e2b() -> None:
    with e2b_lab(STRUCTURED) as lab:
        result = await run_agent("go", OPTIONS, sandbox=lab.sandbox(), environ=lab.environ)
        check(lab.model.requests[0].body)
    assert result.structured_output == {"number": 4}


def variables(options: AgentOptions) -> dict[str, str]:
    """Return the variables of a runner with these options."""
    context, info = TraceContext("a" * 32, "b" * 16), SandboxInfo(id="x", kind="local", work="/w", journal="/j")
    return runner_environment(options, "s", {}, context, info)


def test_what_a_variable_can_hold_is_a_variable_as_old_runners_know_it() -> None:
    old = AgentOptions(system_prompt="Be brief.", mcp_servers={"a": "m:a"}, max_turns=3, allowed_tools=("Read",))
    assert "AGENT_OPTIONS" not in variables(old)
    config = load_config(variables(old), [], {})
    assert (config.system_prompt, config.mcp_servers, config.max_turns) == ("Be brief.", {"a": "m:a"}, 3)


def test_servers_of_both_kinds_reach_the_runner() -> None:
    servers: dict[str, Any] = {"a": "m:a", "b": {"command": "b"}}
    config = load_config(variables(AgentOptions(mcp_servers=servers)), [], {})
    assert config.mcp_servers == convert_options({"mcp_servers": servers}).mcp_servers


def test_an_empty_system_prompt_is_not_claude_codes_own() -> None:
    assert load_config(variables(AgentOptions(system_prompt="")), [], {}).system_prompt == ""
    assert load_config(variables(AgentOptions()), [], {}).system_prompt is None


def test_a_document_of_any_option_of_the_sdk_becomes_options() -> None:
    options = options_from('{"model": "opus", "effort": "low", "env": {"A": "b"}}', user_id="ada")
    assert (options.model, options.effort, options.env, options.user_id) == ("opus", "low", {"A": "b"}, "ada")


def test_options_that_are_too_large_for_a_variable_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"have 120,0\d\d bytes as JSON, at most 120,000 can be sent"):
        AgentOptions(agents={"a": {"description": "d", "prompt": "x" * MAX_DOCUMENT}})


async def test_a_runner_that_is_too_old_for_an_option_ends_the_session(tmp_path: Path) -> None:
    with old_template(load("tools"), tmp_path) as lab:
        options = AgentOptions(effort="low", fallback_model="haiku")
        async with open_session("go", options, sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for _ in session:
                pass
    assert session.failure is not None
    assert session.failure.error_type == "invalid_request"
    assert session.failure.message.startswith("the runner in this sandbox ignores effort, fallback_model: it is older")
