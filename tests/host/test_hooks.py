"""Functions of the host are the agent's hooks, with the SDK's signature and outputs."""

from __future__ import annotations

import json
from typing import Any

import claude_agent_sdk
import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, HookMatcher, current_call, events, open_session, run_agent
from host_client.sandbox import LocalSandbox
from tests.host.test_takeover import rest_of, taken_over
from tests.support.dying_host import DyingHost, plan_of
from tests.support.hosts import HostLab, e2b_lab, host_lab

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

BASH = """
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: echo one}}]
      - text: Done.
"""
HELLO = "conversations: {main: {replies: [{text: Hello.}, {text: Again.}]}}"
ALLOWED = AgentOptions(allowed_tools=("Bash",))


async def events_of(lab: HostLab, hooks: Any, **more: Any) -> list[p.AnyEvent]:
    """Run a prompt with these hooks; return all events."""
    seen: list[p.AnyEvent] = []
    result = await run_agent("go", ALLOWED, hooks=hooks, on_event=seen.append, environ=lab.environ, **more)
    assert result.error_message is None
    return seen


def of(kind: type[Any], seen: list[p.AnyEvent]) -> Any:
    (found,) = [event.data for event in seen if isinstance(event, kind)]
    return found


def specific(event: str, **output: Any) -> dict[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": event, **output}}


async def deny(hook_input: dict[str, Any], tool_use_id: str | None, context: dict[str, Any]) -> dict[str, Any]:
    assert (hook_input["tool_input"], context) == ({"command": "echo one"}, {"signal": None})
    assert (current_call().name, current_call().tool_use_id) == ("PreToolUse", tool_use_id)
    return specific("PreToolUse", permissionDecision="deny", permissionDecisionReason="Not today.")


@pytest.mark.parametrize("matcher", [HookMatcher, claude_agent_sdk.HookMatcher], ids=["own", "of-the-sdk"])
async def test_a_hook_denies_a_call(matcher: Any) -> None:
    with host_lab(BASH) as lab:
        seen = await events_of(lab, {"PreToolUse": [matcher(matcher="Bash", hooks=[deny])]})
    result = of(events.ToolResult, seen)
    assert result.is_error
    assert "Not today." in str(result.content)


async def test_a_hook_denies_a_call_in_e2b() -> None:
    with e2b_lab(BASH) as lab:
        seen = await events_of(lab, {"PreToolUse": [HookMatcher("Bash", [deny])]}, sandbox=lab.sandbox())
    assert "Not today." in str(of(events.ToolResult, seen).content)


async def test_a_hook_changes_the_input_and_another_tells_the_model_more() -> None:
    def change(*_: Any) -> dict[str, Any]:
        return specific("PreToolUse", permissionDecision="allow", updatedInput={"command": "echo two"})

    async def add(hook_input: dict[str, Any], *_: Any) -> dict[str, Any]:
        return specific("PostToolUse", additionalContext=f"It said {hook_input['tool_response']['stdout']}.")

    hooks = {"PreToolUse": [HookMatcher(hooks=[change])], "PostToolUse": [HookMatcher("Bash", [add])]}
    with host_lab(BASH) as lab:
        seen = await events_of(lab, hooks)
        assert "It said two." in json.dumps(lab.model.requests[1].body["messages"])
    assert "two" in str(of(events.ToolResult, seen).content)


async def test_hooks_of_the_prompt_and_of_the_end() -> None:
    stops: list[bool] = []

    async def add(hook_input: dict[str, Any], *_: Any) -> dict[str, Any]:
        return specific("UserPromptSubmit", additionalContext=f"{hook_input['prompt']} on Monday.")

    async def go_on(hook_input: dict[str, Any], *_: Any) -> dict[str, Any] | None:
        stops.append(hook_input["stop_hook_active"])
        return None if hook_input["stop_hook_active"] else {"decision": "block", "reason": "Say more."}

    hooks = {"UserPromptSubmit": [HookMatcher(hooks=[add])], "Stop": [HookMatcher(hooks=[go_on])]}
    with host_lab(HELLO) as lab:
        seen = await events_of(lab, hooks)
        first, second = (json.dumps(request.body["messages"]) for request in lab.model.requests)
    assert "go on Monday." in first
    assert "Say more." in second
    assert stops == [False, True]
    assert of(events.Result, seen).result == "Again."


async def test_a_hook_can_end_the_agent() -> None:
    async def end(*_: Any) -> dict[str, Any]:
        return {"continue_": False, "stopReason": "Enough."}

    with host_lab(BASH) as lab:
        await events_of(lab, {"PostToolUse": [HookMatcher(hooks=[end])]})
        assert len(lab.model.requests) == 1


@pytest.mark.parametrize("on_failure", [None, "block"])
async def test_a_hook_that_fails_is_reported_and_blocks_only_if_it_is_to(on_failure: Any) -> None:
    async def fail(*_: Any) -> None:
        raise ValueError("the policy cannot be read")

    with host_lab(BASH) as lab:
        seen = await events_of(lab, {"PreToolUse": [HookMatcher(hooks=[fail], on_failure=on_failure)]})
    assert of(events.ToolResult, seen).is_error is (on_failure == "block")
    error = of(events.Error, seen)
    assert error.message == "the PreToolUse hook fail failed: ValueError('the policy cannot be read')"


async def test_hooks_are_called_in_a_later_turn() -> None:
    prompts: list[str] = []

    def note(hook_input: dict[str, Any], *_: Any) -> None:
        prompts.append(hook_input["prompt"])

    hooks: Any = {"UserPromptSubmit": [HookMatcher(hooks=[note])]}
    with host_lab(HELLO) as lab:
        async with open_session("one", sandbox=LocalSandbox(), hooks=hooks, environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, events.Result) and event.data.turn == 1:
                    await session.send("two")
                    await session.finish()
    assert prompts == ["one", "two"]


async def test_a_hook_in_flight_when_the_host_dies_is_run_again() -> None:
    async def add(*_: Any) -> dict[str, Any]:
        return specific("UserPromptSubmit", additionalContext="It is Monday.")

    plan = plan_of("e2b", hangs_in_hook=True)
    with e2b_lab(HELLO) as lab, DyingHost(plan, lab.environ) as host:
        await host.until(p.CallbackRequest)
        async with taken_over(host, lab, hooks={"UserPromptSubmit": [HookMatcher(hooks=[add])]}) as session:
            rest = await rest_of(session)
        assert "It is Monday." in json.dumps(lab.model.requests[0].body["messages"])
    assert of(events.CallbackResolved, rest).outcome == "returned"
