"""Subagents on the real CLI: their spans are below the call that started them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, ERROR, OK, SUBAGENT, Finished, Lab, spans_in

MakeLab = Callable[[str], Lab]

HELPER = ["execute_tool Agent", [SUBAGENT, [CHAT], ["execute_tool Bash"], [CHAT]]]


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_a_subagents_own_calls_nest_under_its_call(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - text: I will delegate.
                tools:
                  - name: Agent
                    input: {description: d, prompt: Say hello,
                            subagent_type: general-purpose, run_in_background: false}
              - text: Done.
                expect: hello was said
          helper:
            when: Say hello
            replies:
              - tools: [{name: Bash, input: {command: echo hello}}]
                usage: {input_tokens: 5, cache_read_input_tokens: 7, output_tokens: 3}
              - text: hello was said
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], HELPER, [CHAT]]]
    assert done.types == [
        *("start", "turn_start", "text", "tool_use", "subagent_start"),
        *("tool_use", "tool_result", "text"),  # the subagent's
        *("tool_result", "text", "result", "end"),
    ]
    outer, inner = done.of(protocol.ToolUse)
    assert (outer.data.name, outer.data.parent_tool_use_id) == ("Agent", None)
    assert (inner.data.name, inner.data.parent_tool_use_id) == ("Bash", outer.data.id)
    assert [text.data.parent_tool_use_id for text in done.of(protocol.Text)] == [None, outer.data.id, None]

    call, agent, bash = (done.span(name) for name in ("execute_tool Agent", SUBAGENT, "execute_tool Bash"))
    assert agent.attributes["gen_ai.agent.name"] == "general-purpose"
    assert "Say hello" in agent.attributes["gen_ai.input.messages"]
    assert "hello was said" in agent.attributes["gen_ai.output.messages"]
    assert call.start <= agent.start <= agent.end <= call.end
    began = done.one(protocol.SubagentStart)
    assert (began.data.tool_use_id, began.data.agent_name) == (outer.data.id, "general-purpose")
    assert (began.span_id, began.parent_span_id) == (agent.span_id, call.span_id)
    assert began.ts == pytest.approx(agent.start / 1e9, abs=1e-6)
    first, second = (span for span in done.spans if span.name == CHAT and span.parent_span_id == agent.span_id)
    assert first.attributes["gen_ai.usage.input_tokens"] == 12
    assert first.attributes["gen_ai.response.id"] == "msg_helper_0"
    # Without the gateway, a subagent's output tokens and the time of its first token are not known.
    known = {"gen_ai.usage.output_tokens", "gen_ai.response.time_to_first_chunk"} & set(first.attributes)
    assert len(known) == (2 if gateway == "on" else 0)
    # The request, the call and the next request follow one another within the subagent's own time. The gateway may
    # learn of a request before the runner reads the message that came before it.
    assert agent.start <= first.start <= first.end <= second.start <= second.end
    assert first.start <= bash.start <= bash.end <= agent.end


@pytest.mark.parametrize(("gateway", "requests"), [("on", 6), ("off", 1)])
@pytest.mark.parametrize("background", [False, True])
def test_a_failed_request_of_a_subagent_is_a_failed_request_and_no_failed_tool(
    make_lab: MakeLab, background: bool, gateway: str, requests: int
) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools:
                  - name: Agent
                    input: {{description: d, prompt: Say hello,
                            subagent_type: general-purpose, run_in_background: {json.dumps(background)}}}
              - text: It runs or has failed.
              - text: It failed.
          helper:
            when: Say hello
            replies:
              - fail: [{{status: 400, message: no such model, times: 99}}]
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    assert done.exit_code == 0
    # The CLI asks six times, of which its messages report the last.
    subagent = [f"{SUBAGENT} !invalid_request", *[[f"{CHAT} !invalid_request"]] * requests]
    agent = ["execute_tool Agent !invalid_request", subagent]
    assert done.tree[0] == ["agent.execute", [CHAT], agent, [CHAT]]
    assert background or done.one(protocol.ToolResult).data.error_type == "invalid_request"
    assert "no such model" in next(span for span in done.spans if span.status == ERROR and span.name == CHAT).message


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_parallel_subagents_keep_their_own_calls(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - name: Agent
                    input: {description: a, prompt: Count alpha,
                            subagent_type: general-purpose, run_in_background: false}
                  - name: Agent
                    input: {description: b, prompt: Count beta,
                            subagent_type: general-purpose, run_in_background: false}
              - text: Done.
          a:
            when: Count alpha
            replies:
              - tools: [{name: Bash, input: {command: sleep 0.3 && echo alpha}}]
              - text: one alpha
          b:
            when: Count beta
            replies:
              - tools: [{name: Bash, input: {command: sleep 0.3 && echo beta}}]
              - text: one beta
    """)
    done = lab.run("--prompt", "go", "--gateway", gateway)
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], HELPER, HELPER, [CHAT]]]
    outer = {use.data.id: use for use in done.of(protocol.ToolUse) if use.data.name == "Agent"}
    inner = [use for use in done.of(protocol.ToolUse) if use.data.name == "Bash"]
    spans = {began.data.tool_use_id: began.span_id for began in done.of(protocol.SubagentStart)}
    for use in inner:
        parent = outer[use.data.parent_tool_use_id or ""]
        assert use.parent_span_id == spans[parent.data.id]
        # "Count alpha" asked for "echo alpha".
        assert use.data.input["command"].split()[-1] == parent.data.input["prompt"].split()[-1]
    first, second = (span for span in done.spans if span.name == "execute_tool Agent")
    assert max(first.start, second.start) < min(first.end, second.end)


def test_the_calls_of_a_subagent_below_a_background_subagent_outlive_the_result(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Agent, input: {description: d, prompt: Work slowly, subagent_type: general-purpose}}
              - tools: [{name: Bash, input: {command: cat ready}}]
              - text: It runs.
              - text: It is ready.
          helper:
            when: Work slowly
            replies:
              - tools:
                  - name: Agent
                    input: {description: e, prompt: Dig deeper, subagent_type: general-purpose,
                            run_in_background: false}
              - text: slow work done
          digger:
            when: Dig deeper
            replies:
              - tools: [{name: Bash, input: {command: cat gate}}]
              - text: dug
    """)
    ready, gate = lab.cwd / "ready", lab.cwd / "gate"
    for each in (ready, gate):
        os.mkfifo(each)
    runner = lab.start("--prompt", "go")
    runner.close_stdin()
    runner.until(protocol.ToolUse, lambda use: use.data.input == {"command": "cat gate"})
    ready.write_text("go on\n")
    runner.until(protocol.Result)
    gate.write_text("slow\n")
    done = runner.finish()
    helper = ["execute_tool Agent", [SUBAGENT, [CHAT], HELPER, [CHAT]]]
    first = ["agent.execute", [CHAT], helper, [CHAT], ["execute_tool Bash"], [CHAT]]
    assert done.tree == [first, ["agent.execute", [CHAT]]]


def test_a_background_subagent_outlives_the_result_and_wakes_the_agent(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Agent, input: {description: d, prompt: Work slowly, subagent_type: general-purpose}}
              - text: It runs.
              - text: It is ready.
                expect: slow work done
          helper:
            when: Work slowly
            replies:
              - tools: [{name: Bash, input: {command: cat gate}}]
              - text: slow work done
    """)
    gate = lab.cwd / "gate"
    os.mkfifo(gate)
    runner = lab.start("--prompt", "go")
    runner.close_stdin()
    runner.until(protocol.Result)
    gate.write_text("slow\n")  # as soon as the subagent's command reads it
    done = runner.finish()
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], HELPER, [CHAT]], ["agent.execute", [CHAT]]]
    main, subagent = _by_subagent(done)
    assert main == [
        *("start", "turn_start", "tool_use", "subagent_start", "task", "tool_result", "text", "result"),
        *("task", "turn_start", "text", "result", "end"),
    ]
    began, ended = (event.data for event in done.of(protocol.BackgroundTask))
    assert (began.kind, began.description, began.state, ended.state) == ("local_agent", "d", "running", "completed")
    assert began.tool_use_id == ended.tool_use_id == done.of(protocol.ToolUse)[0].data.id
    assert subagent == ["tool_use", "tool_result", "text"]
    first, second = sorted((span for span in done.spans if span.name == "agent.execute"), key=lambda span: span.start)
    agent = done.span("execute_tool Agent")
    assert first.end < agent.end <= second.start
    assert first.trace_id == agent.trace_id == second.trace_id
    assert all(span.status == OK for span in done.spans)
    assert [turn.data.prompt_size for turn in done.of(protocol.TurnStart)] == [2, 0]
    results = [result.data for result in done.of(protocol.Result)]
    assert [result.result for result in results] == ["It runs.", "It is ready."]
    assert round(sum(result.cost_usd for result in results), 9) == results[-1].total_cost_usd


def _by_subagent(done: Finished) -> tuple[list[str], list[str]]:
    """Return the types of the main agent's events and those of its subagents', whose common order varies."""
    main: list[str] = []
    subagents: list[str] = []
    calls = {use.data.id for use in done.of(protocol.ToolUse) if use.data.parent_tool_use_id}
    for event in done.events:
        if event.seq is not None and event.type != "telemetry":
            ends_a_call = isinstance(event, protocol.ToolResult) and event.data.tool_use_id in calls
            inside = ends_a_call or getattr(event.data, "parent_tool_use_id", None)
            (subagents if inside else main).append(event.type)
    return main, subagents


def test_stopping_while_a_background_subagent_works_leaves_nothing_open(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - {name: Agent, input: {description: d, prompt: Work slowly, subagent_type: general-purpose}}
              - text: It runs.
          helper:
            when: Work slowly
            replies:
              - tools: [{name: Bash, input: {command: "python3 -c 'import time; time.sleep(60)'"}}]
              - text: never
    """)
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    subagent = runner.until(protocol.SubagentStart).span_id

    def ends_its_request(event: protocol.TelemetryEvent) -> bool:
        spans = spans_in(base64.b64decode(event.data.otlp))
        return any((span.name, span.parent_span_id) == (CHAT, subagent) for span in spans)

    runner.until(protocol.TelemetryEvent, ends_its_request)
    if not any(isinstance(event, protocol.Result) for event in runner.events):
        runner.until(protocol.Result)
    runner.send(protocol.Stop())
    done = runner.finish()
    assert done.exit_code == 0
    assert done.one(protocol.End).data.reason == "stopped"
    assert done.tree == [
        [
            "agent.execute",
            [CHAT],
            ["execute_tool Agent !cancelled", [f"{SUBAGENT} !cancelled", [CHAT], ["execute_tool Bash !cancelled"]]],
            [CHAT],
        ]
    ]
