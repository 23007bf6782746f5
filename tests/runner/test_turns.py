"""Turns of one conversation, in one run and across runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent_runner.contract import protocol
from agent_runner.contract.protocol import Prompt
from tests.support.runs import CHAT, MODEL, Lab

MakeLab = Callable[[str], Lab]

TURN = ["agent.execute", [CHAT]]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

THREE = """
    conversations:
      main:
        replies:
          - {text: One., usage: {input_tokens: 100, output_tokens: 10}}
          - {text: Two., usage: {input_tokens: 200, output_tokens: 20}}
          - {text: Three., usage: {input_tokens: 400, output_tokens: 40}}
"""


def test_each_turn_is_a_span_of_the_same_trace_and_costs_its_own(make_lab: MakeLab) -> None:
    lab = make_lab(THREE)
    runner = lab.start("--prompt", "first")
    runner.until(protocol.Result)
    # Both are there before the second turn begins: they are taken one after the other.
    runner.send(Prompt(text="second"), Prompt(text="thírd"))
    done = runner.finish()
    assert done.exit_code == 0
    assert done.tree == [TURN, TURN, TURN]
    assert done.types == ["start", *["turn_start", "text", "result"] * 3, "end"]
    assert [(turn.data.turn, turn.data.prompt_size) for turn in done.of(protocol.TurnStart)] == [(1, 5), (2, 6), (3, 6)]

    results = [result.data for result in done.of(protocol.Result)]
    assert [(result.turn, result.result) for result in results] == [(1, "One."), (2, "Two."), (3, "Three.")]
    # Each turn costs twice the one before, in the script's tokens.
    assert [result.cost_usd / results[0].cost_usd for result in results] == pytest.approx([1, 2, 4])
    assert sum(result.cost_usd for result in results) == pytest.approx(results[-1].total_cost_usd)

    used = [result.turn_model_usage[MODEL] for result in results]
    assert [usage["inputTokens"] for usage in used] == [100, 200, 400]
    assert [usage["costUSD"] for usage in used] == [result.cost_usd for result in results]

    turns = sorted((span for span in done.spans if span.name == "agent.execute"), key=lambda span: span.start)
    assert [span.attributes["agent.turn"] for span in turns] == [1, 2, 3]
    assert [span.attributes["agent.cost_usd"] for span in turns] == [result.cost_usd for result in results]
    assert [span.attributes["gen_ai.request.model"] for span in turns] == [MODEL] * 3
    assert len({span.trace_id for span in done.spans}) == 1
    conversation = {span.attributes["gen_ai.conversation.id"] for span in done.spans}
    assert conversation == {done.one(protocol.Start).data.session_id}
    for event, span in zip(done.of(protocol.TurnStart), turns, strict=True):
        assert (event.trace_id, event.span_id) == (span.trace_id, span.span_id)


def test_a_prompt_with_its_own_traceparent_puts_its_turn_under_that_span(make_lab: MakeLab) -> None:
    lab = make_lab(THREE)
    runner = lab.start(env={"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=run"})
    other = "00-" + "c" * 32 + "-" + "d" * 16 + "-00"
    runner.send(
        Prompt(text="first"),
        Prompt(text="second", traceparent=other, tracestate="vendor=prompt"),
        Prompt(text="third", traceparent="nonsense"),
    )
    done = runner.finish()
    assert done.exit_code == 0
    assert done.tree == [TURN, TURN, TURN]
    first, second, third = sorted(
        (span for span in done.spans if span.name == "agent.execute"), key=lambda span: span.start
    )
    own = (TRACEPARENT[3:35], TRACEPARENT[36:52], "vendor=run")
    assert (first.trace_id, first.parent_span_id, first.tracestate) == own
    assert (second.trace_id, second.parent_span_id, second.tracestate) == ("c" * 32, "d" * 16, "vendor=prompt")
    assert (third.trace_id, third.parent_span_id, third.tracestate) == own
    assert [event.trace_id for event in done.of(protocol.Result)] == [own[0], "c" * 32, own[0]]
    remark = done.one(protocol.Log).data
    assert remark.stream == "runner"
    assert "malformed" in remark.text
    assert "nonsense" in remark.text


def test_a_resumed_conversation_goes_on_and_costs_only_what_is_new(make_lab: MakeLab) -> None:
    lab = make_lab(THREE)
    before = lab.run("--prompt", "first")
    session = before.one(protocol.Start).data.session_id
    after = lab.run("--prompt", "second", "--resume", session)
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert before.tree == after.tree == [TURN]
    start, result = after.one(protocol.Start).data, after.one(protocol.Result).data
    assert (start.resumed, start.session_id) == (True, session)
    assert result.result == "Two."
    past = before.one(protocol.Result).data.cost_usd
    assert result.cost_usd == pytest.approx(2 * past)
    assert result.total_cost_usd == pytest.approx(3 * past)
    assert (result.turn_model_usage[MODEL]["outputTokens"], result.model_usage[MODEL]["outputTokens"]) == (20, 30)
    assert after.of(protocol.Log) == []
    assert after.span("agent.execute").attributes["gen_ai.conversation.id"] == session
    assert after.span(CHAT).attributes["gen_ai.conversation.id"] == session
    # The model saw the whole conversation.
    assert len(lab.model.requests[-1].body["messages"]) == 3


def test_resuming_what_does_not_exist_fails_with_a_clear_error(make_lab: MakeLab) -> None:
    lab = make_lab(THREE)
    done = lab.run("--prompt", "go", "--resume", "11111111-2222-3333-4444-555555555555")
    assert done.exit_code == 3
    assert done.types == ["log", "log", "error", "end"]
    error = done.one(protocol.Error).data
    assert (error.error_type, error.retryable) == ("invalid_request", False)
    assert "No conversation found" in error.message
    assert done.tree == [["agent.execute !invalid_request"]]


def test_two_runs_at_once_do_not_mix(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: sleep 0.3 && echo hello}}]
              - text: Done.
    """)
    runners = [lab.start("--prompt", f"run {n}", "--user-id", f"user-{n}") for n in range(2)]
    for runner in runners:
        runner.close_stdin()
    first, second = (runner.finish() for runner in runners)
    assert first.tree == second.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
    assert {span.trace_id for span in first.spans}.isdisjoint(span.trace_id for span in second.spans)
    assert {span.attributes["user.id"] for span in first.spans} == {"user-0"}
    assert {span.attributes["user.id"] for span in second.spans} == {"user-1"}
