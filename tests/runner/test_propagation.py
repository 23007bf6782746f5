"""A run continues the trace of W3C Trace Context and Baggage in its environment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent_runner.contract import protocol
from tests.support.runs import CHAT, Finished, Lab

MakeLab = Callable[[str], Lab]

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE_ID}-{PARENT_ID}-01"

TOOL = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: 'echo "$TRACEPARENT $TRACESTATE ${AGENT_USER_ID-unset}"'}}]
          - text: Done.
"""


def roots(done: Finished) -> set[tuple[str, str]]:
    return {(span.trace_id, span.parent_span_id) for span in done.spans if span.name == "agent.execute"}


@pytest.mark.parametrize(("flags", "child"), [("00", "01"), ("03", "03")])
def test_a_run_goes_on_with_the_callers_trace_sampled_or_not(make_lab: MakeLab, flags: str, child: str) -> None:
    lab = make_lab(TOOL)
    env = {
        "TRACEPARENT": f"00-{TRACE_ID}-{PARENT_ID}-{flags}",
        "TRACESTATE": "vendor=1,other=2",
        "BAGGAGE": "user.id=ann,session.id=s-1,tenant.id=acme,private=no",
    }
    done = lab.run("--prompt", "go", "--allowed-tools", "Bash", "--attributes", "team=core", env=env)
    assert done.exit_code == 0
    assert done.of(protocol.Log) == []
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
    # Whether the trace is kept is decided on the host: the sandbox always records.
    assert roots(done) == {(TRACE_ID, PARENT_ID)}
    assert {event.trace_id for event in done.events} == {TRACE_ID}
    ids = {"user.id": "ann", "session.id": "s-1", "tenant.id": "acme", "team": "core"}
    for span in done.spans:
        assert span.tracestate == "vendor=1,other=2"
        assert {key: span.attributes.get(key) for key in ids} == ids
        assert "private" not in span.attributes
    # A tool goes on with the turn's span; what the runner was told of the user is not its business.
    turn = done.span("agent.execute")
    told = done.one(protocol.ToolResult).data.content
    assert told == f"00-{TRACE_ID}-{turn.span_id}-{child} vendor=1,other=2 unset"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (GOOD.upper(), "traceparent is malformed"),
        (f"00-{'0' * 32}-{PARENT_ID}-01", "traceparent has a trace id of zeros"),
        ("x" * 100_000, "traceparent is 100000 characters long"),
    ],
    ids=["upper case", "zeros", "100 kB"],
)
def test_a_header_that_cannot_be_followed_begins_a_new_trace_and_says_why(
    make_lab: MakeLab, header: str, why: str
) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    done = lab.run("--prompt", "go", env={"TRACEPARENT": header, "TRACESTATE": "vendor=1"})
    assert done.exit_code == 0
    assert done.types == ["log", "start", "turn_start", "text", "result", "end"]
    log = done.one(protocol.Log).data
    assert log.stream == "runner"
    assert log.text.startswith(why)
    assert log.text.endswith("; it is ignored")
    ((trace_id, parent),) = roots(done)
    assert parent == ""
    assert trace_id not in ("0" * 32, TRACE_ID)
    assert {event.trace_id for event in done.events} == {trace_id}
    assert {span.tracestate for span in done.spans} == {""}


def test_the_parts_of_the_context_that_are_ignored_are_told_once_each(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    env = {"TRACEPARENT": GOOD, "TRACESTATE": "vendor=1,Other=2", "BAGGAGE": "user.id=ann,=x"}
    done = lab.run("--prompt", "go", env=env)
    assert done.exit_code == 0
    assert [(log.data.stream, log.data.text) for log in done.of(protocol.Log)] == [
        ("runner", "tracestate has a malformed member, 'Other=2'; it is ignored"),
        ("runner", "baggage has malformed entries; 1 of them are ignored"),
    ]
    assert roots(done) == {(TRACE_ID, PARENT_ID)}
    assert {(span.tracestate, span.attributes["user.id"]) for span in done.spans} == {("", "ann")}
