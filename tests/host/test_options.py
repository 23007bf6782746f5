"""What a host asks of a run: each option does what it says, and what is none is refused where it is given."""

from __future__ import annotations

import pytest

from agent_runner.contract.trace_context import TraceContext
from host_client import AgentOptions, run_agent
from host_client.client.options import runner_environment
from host_client.sandbox import SandboxInfo
from tests.support.hosts import host_lab

pytestmark = pytest.mark.anyio


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
