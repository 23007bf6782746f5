"""The trace that a run goes on with: W3C Trace Context and Baggage from the environment."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent_runner.contract import protocol
from agent_runner.contract.trace_context import InvalidTraceParentError, TraceContext, parse_baggage, parse_traceparent
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

MALFORMED = {
    "": "malformed",
    "garbage": "malformed",
    GOOD[:-1]: "malformed",
    GOOD + "0": "malformed",
    GOOD.upper(): "malformed",
    GOOD.replace("0af7", "0AF7"): "malformed",
    GOOD.replace("-", "_"): "malformed",
    " " + GOOD: "malformed",
    GOOD + " ": "malformed",
    GOOD + "\n": "malformed",
    GOOD.replace("0af7", "0xf7"): "malformed",
    GOOD.replace("0af7", "\u0660af7"): "malformed",
    f"0-{TRACE_ID}-{PARENT_ID}-01": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}": "malformed",
    f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}0-01": "malformed",
    f"ff-{TRACE_ID}-{PARENT_ID}-01": "forbidden version ff",
    GOOD + "-what-the-future-holds": "trailing data",
    GOOD + "-": "trailing data",
    f"01-{TRACE_ID}-{PARENT_ID}-01.more": "malformed",
    f"00-{'0' * 32}-{PARENT_ID}-01": "trace id of zeros",
    f"00-{TRACE_ID}-{'0' * 16}-01": "parent id of zeros",
    "0" * 1_000_000: "1000000 characters long",
    GOOD + "-" + "x" * 1_000_000: "characters long",
}


@pytest.mark.parametrize("header", MALFORMED, ids=lambda header: repr(header[:60]))
def test_a_header_that_must_not_be_followed_says_why(header: str) -> None:
    with pytest.raises(InvalidTraceParentError, match=re.escape(MALFORMED[header])) as caught:
        parse_traceparent(header)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "ff"])
@pytest.mark.parametrize("version", ["00", "01", "cc", "fe"])
def test_any_flags_and_any_later_version_are_followed(version: str, flags: str) -> None:
    expected = TraceContext(TRACE_ID, PARENT_ID, int(flags, 16), "a=b")
    assert parse_traceparent(f"{version}-{TRACE_ID}-{PARENT_ID}-{flags}", "a=b") == expected
    if version != "00":
        assert parse_traceparent(f"{version}-{TRACE_ID}-{PARENT_ID}-{flags}-more", "a=b") == expected


HEX = st.text("0123456789abcdef", min_size=0, max_size=34)
HEADERS = st.one_of(
    st.tuples(
        st.sampled_from(["00", "01", "fe", "ff", "0", "000", "zz"]),
        st.one_of(st.just(TRACE_ID), st.just("0" * 32), HEX),
        st.one_of(st.just(PARENT_ID), st.just("0" * 16), HEX),
        st.one_of(st.sampled_from(["00", "01", "02", "ff", "FF", "1", "01-", "01-x", "01\n"]), HEX),
    ).map("-".join),
    st.text(max_size=80),
)


@given(HEADERS)
@example(GOOD)
def test_what_we_follow_opentelemetry_follows_in_the_same_way(header: str) -> None:
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": header})).get_span_context()
    try:
        ours = parse_traceparent(header)
    except InvalidTraceParentError:
        # Theirs forgives white space around the header, which the specification has no place for.
        assert not theirs.is_valid or header != header.strip()
        return
    assert theirs.is_valid
    assert (ours.trace_id, ours.span_id) == (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}")
    assert ours.flags == theirs.trace_flags


def test_a_tracestate_that_is_too_long_is_dropped_and_the_trace_goes_on() -> None:
    assert parse_traceparent(GOOD, "a=" + "b" * 510).tracestate == "a=" + "b" * 510
    assert parse_traceparent(GOOD, "a=" + "b" * 511).tracestate == ""


KEYS = st.text("abcXYZ019.-_", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=10)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_baggage_that_opentelemetry_writes_is_read(entries: dict[str, str]) -> None:
    context = None
    for key, value in entries.items():
        context = baggage.set_baggage(key, value, context)
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier, context)
    assert parse_baggage(carrier.get("baggage", "")) == entries


BAGGAGE = {
    "": {},
    "user.id=ann": {"user.id": "ann"},
    " user.id = ann ; secret=yes , session.id=s%201": {"user.id": "ann", "session.id": "s 1"},
    "user.id=a=b": {"user.id": "a=b"},
    "user.id=,x": {"user.id": ""},
    "=x,,;,user.id=ann": {"user.id": "ann"},
    "user.id=J%C3%BCrgen": {"user.id": "Jürgen"},
    "user.id=%ff%zz": {"user.id": "\ufffd%zz"},
    "a=" + "b" * 9000: {},
}


@pytest.mark.parametrize("header", BAGGAGE, ids=lambda header: repr(header[:40]))
def test_of_malformed_baggage_the_good_part_is_kept(header: str) -> None:
    assert parse_baggage(header) == BAGGAGE[header]


@given(st.text(max_size=60))
def test_no_baggage_is_an_error(header: str) -> None:
    parse_baggage(header)


def roots(done: Finished) -> set[tuple[str, str]]:
    return {(span.trace_id, span.parent_span_id) for span in done.spans if span.name == "agent.execute"}


@pytest.mark.parametrize("flags", ["00", "03"])
def test_a_run_goes_on_with_the_callers_trace_sampled_or_not(make_lab: MakeLab, flags: str) -> None:
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
    assert told == f"00-{TRACE_ID}-{turn.span_id}-01 vendor=1,other=2 unset"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (GOOD.upper(), "TRACEPARENT is malformed"),
        (f"00-{'0' * 32}-{PARENT_ID}-01", "TRACEPARENT has a trace id of zeros"),
        ("x" * 100_000, "TRACEPARENT is 100000 characters long"),
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
    assert log.text.endswith("a new trace begins")
    ((trace_id, parent),) = roots(done)
    assert parent == ""
    assert trace_id not in ("0" * 32, TRACE_ID)
    assert {event.trace_id for event in done.events} == {trace_id}
    assert {span.tracestate for span in done.spans} == {""}
