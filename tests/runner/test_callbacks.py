"""Tools and hooks whose functions run on the host: the runner asks for them by events, and takes the answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.callbacks import (
    MAX_INPUT,
    CallbackDefinitions,
    HookDefinition,
    HookEventName,
    ToolDefinition,
    read_callbacks,
)
from tests.support.pictures import png
from tests.support.runs import CHAT, ERROR, TOUCH, Finished, Lab, RunnerProcess

MakeLab = Callable[[str], Lab]

SCHEMA = {"type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]}
ORDERS = ToolDefinition(name="orders", description="Orders of a customer.", input_schema=SCHEMA, timeout=60.0)
ASK = """
    conversations:
      main:
        replies:
          - tools: [{name: mcp__host__orders, input: {customer: ada}}]
          - text: Done.
"""
TWO = """
    conversations:
      main:
        replies:
          - tools:
              - {name: mcp__host__orders, input: {customer: ada}}
              - {name: mcp__host__orders, input: {customer: bob}}
          - text: Done.
"""
HELLO = "conversations: {main: {replies: [{text: Hello.}, {text: Again.}]}}"


def start(lab: Lab, *definitions: ToolDefinition | HookDefinition, args: Sequence[str] = ()) -> RunnerProcess:
    """Start a runner with definitions, whose tools need no approval."""
    document = CallbackDefinitions(
        tools=tuple(each for each in definitions if isinstance(each, ToolDefinition)),
        hooks=tuple(each for each in definitions if isinstance(each, HookDefinition)),
    )
    allowed = ("--allowed-tools", "mcp__host,Bash")
    return lab.start("--prompt", "go", *allowed, *args, env={"AGENT_CALLBACKS": p.to_json(document).decode()})


def hook(
    event: HookEventName,
    *,
    timeout: float = 60.0,
    matcher: str | None = None,
    on_failure: Literal["block"] | None = None,
) -> HookDefinition:
    return HookDefinition(id=f"{event}-1", event=event, timeout=timeout, matcher=matcher, on_failure=on_failure)


def texts(*content: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text} for text in content]}


def reply(runner: RunnerProcess, request: p.CallbackRequest, result: Any = None, error: str | None = None) -> None:
    runner.send(p.CallbackResponse(callback_id=request.data.callback_id, result=result or {}, error=error))


def complete(runner: RunnerProcess) -> Finished:
    runner.until(p.Result)
    return runner.finish()


def outcomes(done: Finished) -> list[str]:
    return [event.data.outcome for event in done.of(p.CallbackResolved)]


# -- tools --------------------------------------------------------------------------------------------


def test_a_tool_of_the_host_is_called_by_an_event_and_answered_by_a_command(make_lab: MakeLab) -> None:
    lab = make_lab(ASK)
    runner = start(lab, ORDERS)
    request = runner.until(p.CallbackRequest)
    assert (request.data.kind, request.data.name, request.data.input) == ("tool", "orders", {"customer": "ada"})
    reply(runner, request, texts("three", "orders"))
    done = complete(runner)
    use, result = done.one(p.ToolUse), done.one(p.ToolResult)
    assert (request.data.tool_use_id, request.span_id) == (use.data.id, use.span_id)
    assert request.data.expires_at == pytest.approx(request.ts + 60, abs=5)
    assert (result.data.is_error, result.data.content) == (False, texts("three", "orders")["content"])
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool mcp__host__orders"], [CHAT]]]
    assert outcomes(done) == ["returned"]
    assert done.types.index("tool_use") < done.types.index("callback_request") < done.types.index("callback_resolved")
    assert done.one(p.Start).data.sdk_options == ["host_tools"]
    (tool,) = (each for each in lab.model.requests[0].body["tools"] if each["name"].startswith("mcp__"))
    assert (tool["description"], tool["input_schema"]["required"]) == ("Orders of a customer.", ["customer"])


def test_tools_of_several_servers_are_told_apart(make_lab: MakeLab) -> None:
    lab = make_lab(
        TWO.replace("mcp__host__orders, input: {customer: bob}", "mcp__shop__orders, input: {customer: bob}")
    )
    shop = ToolDefinition(name="orders", description="", input_schema=SCHEMA, timeout=60.0, server="shop")
    runner = start(lab, ORDERS, shop, args=("--allowed-tools", "mcp__host,mcp__shop"))
    asked = [runner.until(p.CallbackRequest)]
    reply(runner, asked[0], texts("of the host"))
    asked.append(runner.until(p.CallbackRequest))
    reply(runner, asked[1], texts("of the shop"))
    done = complete(runner)
    assert [(each.data.server, each.data.name) for each in asked] == [("host", "orders"), ("shop", "orders")]
    results = [event.data.content for event in done.of(p.ToolResult)]
    assert results == [texts("of the host")["content"], texts("of the shop")["content"]]


def test_a_result_may_have_images_and_be_an_error(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    runner = start(lab, ORDERS)
    image = {"type": "image", "data": base64.b64encode(png(2, 2)).decode(), "mimeType": "image/png"}
    reply(runner, runner.until(p.CallbackRequest), {"content": [image]})
    reply(runner, runner.until(p.CallbackRequest), {**texts("no such customer"), "is_error": True})
    done = complete(runner)
    assert [event.data.is_error for event in done.of(p.ToolResult)] == [False, True]
    first, second = lab.model.requests[-1].body["messages"][-1]["content"]
    assert first["content"][0]["source"]["data"] == image["data"]
    assert (second["is_error"], "no such customer" in json.dumps(second)) == (True, True)
    assert outcomes(done) == ["returned", "returned"]


def test_an_error_of_the_function_is_the_tools_error(make_lab: MakeLab) -> None:
    lab = make_lab(ASK)
    runner = start(lab, ORDERS)
    reply(runner, runner.until(p.CallbackRequest), error="the database is down")
    done = complete(runner)
    result = done.one(p.ToolResult).data
    assert (result.is_error, result.error_type) == (True, "tool_error")
    assert "the database is down" in json.dumps(result.content)
    assert done.span("execute_tool mcp__host__orders").status == ERROR
    assert outcomes(done) == ["failed"]


def test_arguments_that_do_not_fit_the_schema_never_reach_the_host(make_lab: MakeLab) -> None:
    lab = make_lab(ASK.replace("customer: ada", "client: ada"))
    done = complete(start(lab, ORDERS))
    assert "'customer' is a required property" in json.dumps(done.one(p.ToolResult).data.content)
    assert done.of(p.CallbackRequest) == []


def test_a_call_waits_no_longer_than_its_time_limit(make_lab: MakeLab) -> None:
    lab = make_lab(ASK)
    runner = start(lab, ToolDefinition(name="orders", description="", input_schema=SCHEMA, timeout=0.2))
    request = runner.until(p.CallbackRequest)
    runner.until(p.CallbackResolved)
    reply(runner, request, texts("late"))  # an answer that comes too late is no error
    done = complete(runner)
    assert outcomes(done) == ["timeout"]
    assert "did not answer within 0.2 seconds" in json.dumps(done.one(p.ToolResult).data.content)
    assert done.of(p.Error) == []


def test_an_interrupt_cancels_a_call_and_the_conversation_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab(ASK)
    runner = start(lab, ORDERS)
    runner.until(p.CallbackRequest)
    runner.send(p.Interrupt())
    assert runner.until(p.CallbackResolved).data.outcome == "cancelled"
    runner.until(p.Result)
    runner.send(p.Prompt(text="and now?"))
    done = complete(runner)
    assert [event.data.subtype for event in done.of(p.Result)] == ["error_during_execution", "success"]
    assert done.exit_code == 130


def test_without_a_host_calls_fail_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    runner = start(lab, ORDERS)
    runner.until(p.CallbackRequest)
    done = runner.finish()
    assert outcomes(done) == ["no_host", "no_host"]
    assert "the host has ended" in json.dumps(done.of(p.ToolResult)[0].data.content)
    assert done.one(p.Result).data.is_error is False


def test_only_calls_of_read_only_tools_run_side_by_side(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    read_only = {"readOnlyHint": True}
    tool = ToolDefinition(name="orders", description="", input_schema=SCHEMA, timeout=60, annotations=read_only)
    runner = start(lab, tool)
    first, second = runner.until(p.CallbackRequest), runner.until(p.CallbackRequest)
    reply(runner, second, texts("of " + second.data.input["customer"]))
    reply(runner, first, texts("of " + first.data.input["customer"]))
    done = complete(runner)
    uses = {event.data.id: event.data.input["customer"] for event in done.of(p.ToolUse)}
    results = {uses[event.data.tool_use_id]: event.data.content for event in done.of(p.ToolResult)}
    assert results == {"ada": texts("of ada")["content"], "bob": texts("of bob")["content"]}
    ids = {event.data.callback_id: uses[event.data.tool_use_id or ""] for event in (first, second)}
    assert sorted(ids.values()) == ["ada", "bob"]


def test_a_person_approves_a_tool_of_the_host_like_any_other(make_lab: MakeLab) -> None:
    lab = make_lab(ASK)
    document = p.to_json(CallbackDefinitions(tools=(ORDERS,))).decode()
    runner = lab.start("--prompt", "go", env={"AGENT_CALLBACKS": document})
    approval = runner.until(p.ApprovalRequest).data
    edit = {"customer": "eve"}
    runner.send(p.Approval(approval_id=approval.approval_id, decision="allow", updated_input=edit))
    request = runner.until(p.CallbackRequest)
    assert request.data.input == edit
    reply(runner, request, texts("none"))
    assert complete(runner).exit_code == 0


def test_an_unknown_callback_is_an_error_and_the_run_goes_on(make_lab: MakeLab) -> None:
    runner = start(make_lab(ASK), ORDERS)
    runner.send(p.CallbackResponse(callback_id="no-such", result=texts("x")))
    assert runner.until(p.Error).data.message == "callback 'no-such' is unknown"
    reply(runner, runner.until(p.CallbackRequest), texts("three"))
    assert complete(runner).exit_code == 0


# -- hooks --------------------------------------------------------------------------------------------


def test_a_hook_denies_a_tool_call(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner = start(lab, hook("PreToolUse", matcher="Bash"))
    request = runner.until(p.CallbackRequest)
    assert (request.data.kind, request.data.name) == ("hook", "PreToolUse-1")
    assert request.data.input["tool_input"]["command"] == "touch made"
    denial = {"permissionDecision": "deny", "permissionDecisionReason": "Not on Fridays."}
    reply(runner, request, {"hookSpecificOutput": {"hookEventName": "PreToolUse", **denial}})
    done = complete(runner)
    assert request.span_id == done.one(p.ToolUse).span_id
    assert "Not on Fridays." in str(done.one(p.ToolResult).data.content)
    assert done.one(p.ToolResult).data.denied_by == "hook"
    assert done.one(p.Start).data.sdk_options == ["hooks"]
    assert not (lab.cwd / "made").exists()


def test_a_hook_changes_the_input_of_a_tool_call(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner = start(lab, hook("PreToolUse"))
    change = {"permissionDecision": "allow", "updatedInput": {"command": "touch other"}}
    reply(runner, runner.until(p.CallbackRequest), {"hookSpecificOutput": {"hookEventName": "PreToolUse", **change}})
    done = complete(runner)
    assert done.one(p.ToolResult).data.executed_input == {"command": "touch other"}
    assert sorted(path.name for path in lab.cwd.iterdir()) == ["other"]


def test_the_time_of_a_hook_is_not_counted_as_the_queue_of_its_call(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner = start(lab, hook("PreToolUse"), hook("PostToolUse"), hook("Stop"))
    for _ in range(3):
        reply(runner, runner.until(p.CallbackRequest))
    done = complete(runner)
    waits = [event.data.wait_ms for event in done.of(p.CallbackResolved)]
    call, turn = done.span("execute_tool Bash"), done.span("agent.execute")
    assert call.attributes["tool.hook_ms"] >= waits[0] + waits[1]
    assert [(name, about["hook.event"]) for name, about in turn.events if name == "hook"] == [("hook", "Stop")]


def test_hooks_of_a_turn_add_to_the_prompt_and_keep_the_agent_going(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    runner = start(lab, hook("UserPromptSubmit"), hook("Stop"))
    request = runner.until(p.CallbackRequest)
    assert request.data.input["prompt"] == "go"
    context = {"hookEventName": "UserPromptSubmit", "additionalContext": "It is Monday."}
    reply(runner, request, {"hookSpecificOutput": context})
    reply(runner, runner.until(p.CallbackRequest), {"decision": "block", "reason": "Say more."})
    reply(runner, runner.until(p.CallbackRequest))
    assert complete(runner).one(p.Result).data.result == "Again."
    first, second = lab.model.requests
    assert "It is Monday." in json.dumps(first.body["messages"])
    assert "Say more." in json.dumps(second.body["messages"])


def test_a_hook_without_an_answer_denies_its_call(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    done = complete(start(lab, hook("PreToolUse", timeout=0.2)))
    assert outcomes(done) == ["timeout"]
    assert "did not decide: the host did not answer within 0.2 seconds" in str(done.one(p.ToolResult).data.content)
    assert not (lab.cwd / "made").exists()


def test_a_call_whose_input_is_too_large_for_its_hook_is_denied(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH.replace("touch made", "'touch made #" + "a" * MAX_INPUT + "'"))
    done = complete(start(lab, hook("PreToolUse")))
    assert "did not decide: its input has 8," in str(done.one(p.ToolResult).data.content)
    assert not (lab.cwd / "made").exists()


@pytest.mark.parametrize(("on_failure", "made"), [(None, True), ("block", False)])
def test_a_hook_that_fails_has_no_effect_unless_it_is_to_block(make_lab: MakeLab, on_failure: Any, made: bool) -> None:
    lab = make_lab(TOUCH)
    runner = start(lab, hook("PreToolUse", on_failure=on_failure))
    reply(runner, runner.until(p.CallbackRequest), error="KeyError: 'user'")
    done = complete(runner)
    assert (lab.cwd / "made").exists() is made
    remarks = [event.data.text for event in done.of(p.Log) if event.data.stream == "runner"]
    assert "the PreToolUse hook PreToolUse-1 failed: KeyError: 'user'" in remarks


# -- definitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ("[]", "Expected `object`"),
        ('{"tools": [{"name": "a b"}]}', "tools[0].name"),
        ('{"hooks": [{"id": "x", "event": "Never", "timeout": 1}]}', "hooks[0].event"),
        ('{"hooks": [{"id": "x", "event": "Stop", "timeout": 0}]}', "hooks[0].timeout"),
        ('{"tool": []}', "unknown field `tool`"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(document: str, fault: str) -> None:
    with pytest.raises(ValueError, match="not a document of host tools and hooks") as caught:
        read_callbacks(document)
    assert fault in str(caught.value)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools are named 'mcp__host__orders'"):
        CallbackDefinitions(tools=(ORDERS, ORDERS))


def test_a_server_of_ones_own_cannot_have_the_name_of_the_hosts(make_lab: MakeLab) -> None:
    document = p.to_json(CallbackDefinitions(tools=(ORDERS,))).decode()
    servers = ("--mcp-servers", "host=tests.runner.mcp_servers:lab")
    done = make_lab(HELLO).run("--prompt", "go", *servers, env={"AGENT_CALLBACKS": document})
    assert (done.exit_code, done.one(p.Error).data.message) == (
        2,
        "the MCP server 'host' has the name of the server with the host's tools: rename it",
    )


def test_annotations_that_are_not_mcps_are_refused(make_lab: MakeLab) -> None:
    tool = ToolDefinition(name="a", description="", input_schema={}, timeout=1, annotations={"readOnlyHint": "soon"})
    document = p.to_json(CallbackDefinitions(tools=(tool,))).decode()
    done = make_lab(HELLO).run("--prompt", "go", env={"AGENT_CALLBACKS": document})
    assert done.exit_code == 2
    assert "the annotations of a are not MCP's" in done.one(p.Error).data.message


def test_an_input_that_is_too_large_for_an_event_is_the_tools_error(make_lab: MakeLab) -> None:
    lab = make_lab(ASK.replace("ada", "a" * (MAX_INPUT + 1)))
    done = complete(start(lab, ORDERS))
    assert done.of(p.CallbackRequest) == []
    assert "at most 8,388,608 are sent" in json.dumps(done.one(p.ToolResult).data.content)
