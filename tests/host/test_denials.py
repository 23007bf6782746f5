"""The result of a run whose tool calls were all denied reports the denials."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from agent_runner.contract.protocol import AnyEvent, ApprovalRequest
from host_client import AgentOptions, run_agent
from host_client.cli._render import Renderer
from host_client.telemetry.calls import ToolCalls
from tests.support.hosts import host_lab, views

pytestmark = pytest.mark.anyio

TWO_CALLS = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch one}}]
          - tools: [{name: Write, input: {file_path: two, content: x}}]
          - text: I could do nothing.
"""
ALLOW = (
    'approvals="auto" allows every call, a function as approvals decides each, and AgentOptions(allowed_tools=…)'
    " allows some tools"
)


@pytest.mark.parametrize("telemetry", ["true", "false"])
async def test_a_run_whose_every_call_was_denied_says_so_in_its_result(telemetry: str) -> None:
    with host_lab(TWO_CALLS) as lab:
        result = await run_agent("go", environ={**lab.environ, "OTEL_ENABLED": telemetry})
    assert (result.is_error, result.text) == (False, "I could do nothing.")
    assert (result.tool_calls, result.denied_calls, result.denied_tools) == (2, 2, ("Bash", "Write"))
    assert result.remark == f"every tool call was denied (Bash, Write): {ALLOW}"


async def test_a_call_that_nobody_decided_in_time_was_denied_too() -> None:
    async def never(_request: ApprovalRequest) -> bool:
        await asyncio.Event().wait()
        return True

    script = "{conversations: {main: {replies: [{tools: [{name: Bash, input: {command: touch x}}]}, {text: No.}]}}}"
    with host_lab(script) as lab:
        options = AgentOptions(approval_timeout=0.2)
        result = await run_agent("go", options, approvals=never, environ=lab.environ)
    assert result.remark == f"every tool call was denied (Bash): {ALLOW}"


async def test_a_run_with_a_call_that_was_allowed_has_no_remark() -> None:
    with host_lab(TWO_CALLS) as lab:
        result = await run_agent("go", AgentOptions(allowed_tools=("Write",)), environ=lab.environ)
    assert (result.tool_calls, result.denied_calls) == (2, 1)
    assert result.remark is None


async def test_a_call_that_the_mode_denied_is_told_with_that_and_without_advice_on_approvals() -> None:
    script = "{conversations: {main: {replies: [{tools: [{name: Bash, input: {command: touch x}}]}, {text: No.}]}}}"
    out, calls = io.StringIO(), ToolCalls()
    renderer = Renderer(Console(file=out, width=200), calls)

    def show(event: AnyEvent) -> None:
        calls.observe(event)
        renderer.show(event)

    with host_lab(script) as lab:
        options = AgentOptions(permission_mode="dontAsk")
        result = await run_agent("go", options, approvals="auto", on_event=show, environ=lab.environ)
    (call,) = (span for span in views(result.spans) if span.name == "execute_tool Bash")
    assert (call.attributes["error.type"], call.attributes["tool.denied_by"]) == ("permission_denied", "mode")
    assert "✗ permission_denied (by mode) Bash" in out.getvalue()
    assert (result.tool_calls, result.denied_calls, result.remark) == (1, 0, None)


async def test_a_run_without_a_call_has_no_remark() -> None:
    with host_lab("{conversations: {main: {replies: [{text: Hello.}]}}}") as lab:
        result = await run_agent("go", environ=lab.environ)
    assert (result.tool_calls, result.remark) == (0, None)
