"""The record of tool calls, which finds them by id and span, measures waits for people, and is limited in size."""

from __future__ import annotations

from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client.telemetry import calls
from host_client.telemetry.calls import ToolCalls
from tests.support.metrics import result

TURN, OUTER, INNER, ASKED, SUBAGENT = ("1" * 16, "2" * 16, "3" * 16, "4" * 16, "5" * 16)


def event(data: p.EventData, span_id: str, parent: str | None = None) -> p.AnyEvent:
    return p.event_of(data, seq=1, ts=1.0, trace_id="a" * 32, span_id=span_id, parent_span_id=parent)


def called(tool_id: str, name: str, span_id: str, parent_span_id: str, parent: str | None = None) -> p.AnyEvent:
    data = p.ToolUseData(id=tool_id, name=name, input={}, parent_tool_use_id=parent)
    return event(data, span_id, parent_span_id)


def asked(tool_id: str) -> p.AnyEvent:
    about: dict[str, Any] = {
        "approval_id": "a",
        "tool_use_id": tool_id,
        "tool_name": "Bash",
        "input": {},
        "input_sha256": "",
    }
    return event(p.ApprovalRequestData(**about, expires_at=9.0), ASKED, INNER)


def answered(wait_ms: float) -> p.AnyEvent:
    data = p.ApprovalResolvedData(approval_id="a", tool_use_id="i", decision="allow", wait_ms=wait_ms)
    return event(data, ASKED)


def ended(tool_id: str, span_id: str) -> p.AnyEvent:
    data = p.ToolResultData(tool_use_id=tool_id, content="", is_error=False, duration_ms=1.0, bytes=0)
    return event(data, span_id)


def turn_ended() -> p.AnyEvent:
    return event(result(0.0), TURN)


def following(*events: p.AnyEvent) -> ToolCalls:
    followed = ToolCalls()
    for each in events:
        followed.observe(each)
    return followed


def test_a_call_is_known_by_its_id_and_by_its_span_and_how_deep_it_is() -> None:
    followed = following(called("o", "Agent", OUTER, TURN), called("i", "Bash", INNER, OUTER, parent="o"))
    inner = followed.get("i")
    assert inner is not None
    assert (inner.name, inner.span_id, inner.depth) == ("Bash", INNER, 1)
    assert followed.get("other") is followed.get(None) is None


def test_the_turn_of_a_span_is_found_through_the_calls_of_subagents() -> None:
    followed = following(called("o", "Agent", OUTER, TURN), called("i", "Agent", INNER, OUTER, parent="o"))
    assert {followed.turn_of(span_id) for span_id in (TURN, OUTER, INNER)} == {TURN}
    assert followed.turn_of(ASKED) == ASKED, "a span that is no call's"


def test_the_turn_of_a_subagents_own_span_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    began = event(p.SubagentStartData(tool_use_id="o", agent_name="Explore"), SUBAGENT, OUTER)
    inside = called("i", "Bash", INNER, SUBAGENT, parent="o")
    followed = following(called("o", "Agent", OUTER, TURN), began, inside)
    assert {followed.turn_of(span_id) for span_id in (TURN, OUTER, SUBAGENT, INNER)} == {TURN}
    again = event(p.SubagentStartData(tool_use_id="o", agent_name="Explore"), ASKED, OUTER)
    followed.observe(again)
    assert followed.turn_of(ASKED) == ASKED, "a call has one subagent, so a forged event adds nothing"
    monkeypatch.setattr(calls, "MAX_CALLS", 2)
    followed.observe(called("n", "Bash", "6" * 16, TURN))
    assert followed.turn_of(SUBAGENT) == SUBAGENT, "forgotten with its call"


def test_a_call_that_an_approval_tells_of_first_is_the_same_call() -> None:
    followed = following(asked("i"), called("i", "Bash", INNER, TURN), answered(300.0), answered(300.0))
    call = followed.get("i")
    assert call is not None
    assert (call.name, call.span_id, call.waited_ms) == ("Bash", INNER, 300.0), "a wait ends once"


def test_questions_are_waited_for_too() -> None:
    question = p.QuestionRequestData(question_id="q", tool_use_id="i", questions=[], expires_at=9.0)
    answer = p.QuestionResolvedData(question_id="q", answers={}, decision="answered", wait_ms=200.0)
    followed = following(event(question, ASKED, INNER), event(answer, ASKED))
    call = followed.get("i")
    assert call is not None
    assert (call.name, call.waited_ms) == ("AskUserQuestion", 200.0)


def test_who_reads_after_the_turns_end_still_finds_its_calls() -> None:
    followed = following(called("i", "Bash", INNER, TURN), ended("i", INNER), turn_ended())
    call = followed.get("i")
    assert call is not None and call.name == "Bash"
    assert followed.turn_of(INNER) == TURN


def test_of_too_many_calls_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_CALLS", 3)
    followed = following(*(called(f"t{number}", "Bash", f"{number:016x}", TURN) for number in range(1, 6)))
    assert [followed.get(f"t{number}") is None for number in range(1, 6)] == [True, True, False, False, False]
    assert [followed.turn_of(f"{number:016x}") == TURN for number in (2, 3)] == [False, True]


def test_a_forged_name_or_id_of_any_length_takes_little_memory() -> None:
    long = "x" * 1_000_000
    call = following(called(long, long, OUTER, TURN)).get(long)
    assert call is not None
    assert (len(call.id), len(call.name)) == (200, 200)


def test_a_secret_in_a_calls_name_is_redacted_before_the_name_is_cut() -> None:
    calls = ToolCalls()
    secret = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0" * 12 + ".c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
    calls.observe(called("t", secret, OUTER, TURN))
    call = calls.get("t")
    assert call is not None
    assert "eyJ" not in call.name
