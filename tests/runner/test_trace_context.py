"""Trace context in headers and variables is followed if valid, otherwise ignored with a reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent_runner.contract.trace_context import (
    InvalidTraceParentError,
    TraceContext,
    baggage_from_environment,
    baggage_from_headers,
    from_environment,
    from_headers,
    parse_traceparent,
)

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GOOD = f"00-{TRACE_ID}-{PARENT_ID}-01"
FOLLOWED = TraceContext(TRACE_ID, PARENT_ID)


def raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Return headers as an ASGI scope has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


# -- traceparent ------------------------------------------------------------------------------------

NOT_FOLLOWED = {
    "": "malformed",
    "garbage": "malformed",
    GOOD[:-1]: "malformed",
    GOOD + "0": "malformed",
    GOOD.upper(): "malformed",
    GOOD.replace("0af7", "0AF7"): "malformed",
    GOOD.replace("-", "_"): "malformed",
    "\n" + GOOD: "malformed",
    GOOD + "\n": "malformed",
    GOOD + "\x00": "malformed",
    GOOD.replace("0af7", "0xf7"): "malformed",
    GOOD.replace("0af7", "\xb2af7"): "malformed",
    f"{GOOD},{GOOD}": "malformed",
    f"0-{TRACE_ID}-{PARENT_ID}-01": "malformed",
    f"000-{TRACE_ID}-{PARENT_ID}-01": "malformed",
    f"0.-{TRACE_ID}-{PARENT_ID}-01": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}-1": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}-0.": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}-0A": "malformed",
    f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01": "malformed",
    f"00-{TRACE_ID}0-{PARENT_ID}-01": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID[:-1]}-01": "malformed",
    f"00-{TRACE_ID}-{PARENT_ID}0-01": "malformed",
    f"01-{TRACE_ID}-{PARENT_ID}-01.more": "malformed",
    f"01-{TRACE_ID}-{PARENT_ID}": "malformed",
    f"ff-{TRACE_ID}-{PARENT_ID}-01": "forbidden version ff",
    GOOD + "-what-the-future-holds": "trailing data",
    GOOD + "-": "trailing data",
    f"00-{'0' * 32}-{PARENT_ID}-01": "trace id of zeros",
    f"00-{TRACE_ID}-{'0' * 16}-01": "parent id of zeros",
    "0" * 1_000_000: "1000000 characters long",
    f"01{GOOD[2:]}-" + "x" * 1_000_000: "characters long",
}


@pytest.mark.parametrize("value", NOT_FOLLOWED, ids=lambda value: repr(value[:60]))
def test_a_traceparent_that_must_not_be_followed_is_ignored_and_told_once(value: str) -> None:
    told: list[str] = []
    assert from_headers(raw([("traceparent", value), ("tracestate", "a=1")]), told.append) is None
    (why,) = told
    assert NOT_FOLLOWED[value] in why
    assert why.endswith("; it is ignored")
    assert len(why) < 200
    with pytest.raises(InvalidTraceParentError, match=NOT_FOLLOWED[value]):
        parse_traceparent(value)
    if value:  # an empty variable is one that is not set
        again: list[str] = []
        assert from_environment({"TRACEPARENT": value, "TRACESTATE": "a=1"}, again.append) is None
        assert again == told


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "ff"])
@pytest.mark.parametrize("version", ["00", "01", "cc", "fe"])
def test_any_later_version_is_followed_with_the_flags_that_are_known(version: str, flags: str) -> None:
    expected = TraceContext(TRACE_ID, PARENT_ID, int(flags, 16) & 3, "a=b")
    assert parse_traceparent(f"{version}-{TRACE_ID}-{PARENT_ID}-{flags}", "a=b") == expected
    if version != "00":
        assert parse_traceparent(f"{version}-{TRACE_ID}-{PARENT_ID}-{flags}-more", "a=b") == expected


@pytest.mark.parametrize(("flags", "child"), [("00", "01"), ("01", "01"), ("02", "03"), ("03", "03"), ("fd", "01")])
def test_a_child_is_sampled_and_random_if_its_parent_is(flags: str, child: str) -> None:
    assert parse_traceparent(f"00-{TRACE_ID}-{PARENT_ID}-{flags}").traceparent == f"00-{TRACE_ID}-{PARENT_ID}-{child}"


HEX = st.text("0123456789abcdef", min_size=0, max_size=34)
VALUES_OF_TRACEPARENT = st.one_of(
    st.tuples(
        st.sampled_from(["00", "01", "fe", "ff", "0", "000", "zz"]),
        st.one_of(st.just(TRACE_ID), st.just("0" * 32), HEX),
        st.one_of(st.just(PARENT_ID), st.just("0" * 16), HEX),
        st.one_of(st.sampled_from(["00", "01", "02", "ff", "FF", "1", "01-", "01-x", "01\n", "01 \t"]), HEX),
    ).map("-".join),
    st.text(max_size=80),
)


@given(VALUES_OF_TRACEPARENT)
@example(GOOD)
def test_a_followed_traceparent_is_followed_by_opentelemetry_in_the_same_way(value: str) -> None:
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": value})).get_span_context()
    try:
        ours = parse_traceparent(value)
    except InvalidTraceParentError:
        assert not theirs.is_valid or value.endswith("\n")  # their pattern's $ matches before a last newline
        return
    assert theirs.is_valid
    assert (ours.trace_id, ours.span_id) == (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}")
    assert ours.flags == theirs.trace_flags & 3


# -- headers ----------------------------------------------------------------------------------------

HEADERS: dict[str, tuple[list[tuple[str, str]], TraceContext | None, str | None]] = {
    "no header": ([], None, None),
    "one traceparent": ([("traceparent", GOOD)], FOLLOWED, None),
    "a name in other case": ([("TraceParent", GOOD)], FOLLOWED, None),
    "names that only look alike": ([("trace-parent", GOOD), ("trace.parent", GOOD)], None, None),
    "white space around the value": ([("traceparent", f" \t{GOOD}\t ")], FOLLOWED, None),
    "two traceparents": (
        [("traceparent", GOOD), ("traceparent", GOOD.replace(TRACE_ID, OTHER_ID))],
        None,
        "traceparent was sent 2 times; it is ignored",
    ),
    "the same traceparent twice": (
        [("traceparent", GOOD), ("Traceparent", GOOD)],
        None,
        "traceparent was sent 2 times; it is ignored",
    ),
    "a tracestate without a traceparent": ([("tracestate", "FOO=1")], None, None),
    "several tracestates, in order": (
        [("tracestate", "b=2,a=1"), ("traceparent", GOOD), ("TraceState", "d=4"), ("x", "y"), ("tracestate", "c=3")],
        TraceContext(TRACE_ID, PARENT_ID, 1, "b=2,a=1,d=4,c=3"),
        None,
    ),
    "empty tracestates": (
        [("traceparent", GOOD), ("tracestate", ""), ("tracestate", "a=1"), ("tracestate", " \t"), ("tracestate", ",,")],
        TraceContext(TRACE_ID, PARENT_ID, 1, "a=1"),
        None,
    ),
    "nothing but an empty tracestate": ([("traceparent", GOOD), ("tracestate", "")], FOLLOWED, None),
    "a malformed member in a later tracestate": (
        [("traceparent", GOOD), ("tracestate", "a=1"), ("tracestate", "B=2")],
        FOLLOWED,
        "tracestate has a malformed member, 'B=2'; it is ignored",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_read_as_the_request_sent_them(case: str) -> None:
    headers, context, why = HEADERS[case]
    told: list[str] = []
    assert from_headers(raw(headers), told.append) == context
    assert told == ([why] if why else [])


def test_without_a_listener_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert from_headers(raw([("traceparent", "100%s"), ("tracestate", "a=1")])) is None
    assert [record.getMessage() for record in caplog.records] == ["traceparent is malformed: '100%s'; it is ignored"]


ENVIRONMENTS: dict[str, tuple[dict[str, str], TraceContext | None]] = {
    "neither variable": ({}, None),
    "empty variables": ({"TRACEPARENT": "", "TRACESTATE": ""}, None),
    "a tracestate alone": ({"TRACESTATE": "a=1"}, None),
    "names in lower case": ({"traceparent": GOOD}, None),
    "a traceparent alone": ({"TRACEPARENT": GOOD}, FOLLOWED),
    "both": ({"TRACEPARENT": GOOD, "TRACESTATE": "b=2 , a=1"}, TraceContext(TRACE_ID, PARENT_ID, 1, "b=2,a=1")),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_an_environment_is_read_by_the_same_rules(case: str) -> None:
    environ, context = ENVIRONMENTS[case]
    told: list[str] = []
    assert from_environment(environ, told.append) == context
    assert told == []


# -- tracestate -------------------------------------------------------------------------------------

ALL_OF_A_KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/@"
ALL_OF_A_VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")

KEPT = {
    "a=1": "a=1",
    "a=1,b=2": "a=1,b=2",
    "\ta=1 \t,\t b=2 ": "a=1,b=2",
    "a= 1": "a= 1",
    "a=1 2": "a=1 2",
    "1a=1": "1a=1",
    "tenant@vendor=1": "tenant@vendor=1",
    "a@=1,b@@c=2,d@e@f=3": "a@=1,b@@c=2,d@e@f=3",
    f"{ALL_OF_A_KEY}={ALL_OF_A_VALUE}": f"{ALL_OF_A_KEY}={ALL_OF_A_VALUE}",
    "k" * 256 + "=1": "k" * 256 + "=1",
    "t" * 241 + "@" + "v" * 14 + "=1": "t" * 241 + "@" + "v" * 14 + "=1",
    "a=" + "v" * 256: "a=" + "v" * 256,
    "a=1,a=1": "a=1",
    "a=1,b=2,a=3": "a=1,b=2",
    ",".join(f"k{n}={n}" for n in range(32)): ",".join(f"k{n}={n}" for n in range(32)),
}


@pytest.mark.parametrize("value", KEPT, ids=lambda value: repr(value[:40]))
def test_a_well_formed_tracestate_goes_on_in_order_with_each_key_once(value: str) -> None:
    told: list[str] = []
    assert parse_traceparent(GOOD, value, told.append).tracestate == KEPT[value]
    assert told == []


DROPPED = {
    "A=1": "'A=1'",
    "a.b=1": "'a.b=1'",
    "a =1": "'a =1'",
    "@a=1,b=2": "'@a=1'",
    "_a=1": "'_a=1'",
    "a=1,b": "'b'",
    "a": "'a'",
    "=1": "'=1'",
    "a=": "'a='",
    "a=,b=2": "'a='",
    "a=1=2": "'a=1=2'",
    "a=1\t2": r"'a=1\t2'",
    "a=1\n": r"'a=1\n'",
    "a=\xfc": "'a=\xfc'",
    "a=\udcff": r"'a=\udcff'",
    "k" * 257 + "=1": "kkk'",
    "a=" + "v" * 257: "vvv'",
    ",".join(f"k{n}={n}" for n in range(33)): "33 members, more than 32",
    ",".join(["a=1"] * 33): "33 members, more than 32",
}


@pytest.mark.parametrize("value", DROPPED, ids=lambda value: repr(value[:40]))
def test_a_malformed_tracestate_is_ignored_and_told_and_the_trace_goes_on(value: str) -> None:
    told: list[str] = []
    assert parse_traceparent(GOOD, value, told.append) == FOLLOWED
    (why,) = told
    assert DROPPED[value] in why
    assert why.endswith("; it is ignored")
    assert len(why) < 200


def of_length(key: str, length: int) -> str:
    """Return a tracestate member of this number of characters."""
    return f"{key}=" + "v" * (length - len(key) - 1)


LONG, SHORT = of_length("long", 129), of_length("short", 128)
CUT = {
    "512 characters": ([of_length(f"k{n}", 127) for n in range(3)] + [SHORT], [0, 1, 2, 3]),
    "513 characters": ([of_length(f"k{n}", 127) for n in range(3)] + [of_length("k3", 129)], [0, 1, 2]),
    "the long go first": ([LONG, *(of_length(f"k{n}", 128) for n in range(3)), "z=1"], [1, 2, 3, 4]),
    "no more of the long than needed": ([LONG, SHORT, of_length("l", 200), of_length("m", 200)], [0, 1, 2]),
    "then the last": ([of_length(f"k{n}", 100) for n in range(6)], [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("case", CUT)
def test_a_long_tracestate_loses_whole_members_the_long_ones_first(case: str) -> None:
    members, kept = CUT[case]
    told: list[str] = []
    assert parse_traceparent(GOOD, ",".join(members), told.append).tracestate == ",".join(members[n] for n in kept)
    left_out = len(members) - len(kept)
    expected = f"tracestate is longer than 512 characters; {left_out} of its members are ignored"
    assert told == ([expected] if left_out else [])


@given(st.lists(st.text("ab1=@, \t", max_size=12), max_size=40))
def test_whatever_is_sent_a_tracestate_is_well_formed(values: list[str]) -> None:
    headers = [("traceparent", GOOD), *(("tracestate", value) for value in values)]
    context = from_headers(raw(headers), list[str]().append)
    assert context is not None
    again: list[str] = []
    assert parse_traceparent(GOOD, context.tracestate, again.append) == context
    assert again == []


# -- baggage ----------------------------------------------------------------------------------------

KEYS = st.text("abcXYZ019.-_", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=10)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_baggage_that_opentelemetry_writes_is_read(entries: dict[str, str]) -> None:
    context = None
    for key, value in entries.items():
        context = baggage.set_baggage(key, value, context)
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier, context)
    told: list[str] = []
    assert baggage_from_environment({"BAGGAGE": carrier.get("baggage", "")}, told.append) == entries
    assert told == []


BAGGAGE: dict[str, tuple[dict[str, str], str | None]] = {
    "": ({}, None),
    "user.id=ann": ({"user.id": "ann"}, None),
    " user.id = ann ; secret=yes , session.id=s%201": ({"user.id": "ann", "session.id": "s 1"}, None),
    "user.id=a=b": ({"user.id": "a=b"}, None),
    "user.id=,": ({"user.id": ""}, None),
    "user.id=J%C3%BCrgen": ({"user.id": "Jürgen"}, None),
    "user.id=%ff%zz": ({"user.id": "\ufffd%zz"}, None),
    "=x,,;,user.id=ann,y": ({"user.id": "ann"}, "baggage has malformed entries; 3 of them are ignored"),
    "a=" + "b" * 9000: ({}, "baggage is 9002 characters long, more than 8192; it is ignored"),
}


@pytest.mark.parametrize("value", BAGGAGE, ids=lambda value: repr(value[:40]))
def test_the_good_part_of_baggage_is_kept_and_the_rest_told_once(value: str) -> None:
    entries, why = BAGGAGE[value]
    told: list[str] = []
    assert baggage_from_environment({"BAGGAGE": value}, told.append) == entries
    assert baggage_from_headers(raw([("Baggage", value)]), told.append) == entries
    assert told == ([why, why] if why else [])


def test_several_baggage_headers_are_one_list() -> None:
    assert baggage_from_headers(raw([("baggage", "a=1,b=2"), ("x", "y"), ("baggage", "c=3")])) == {
        "a": "1",
        "b": "2",
        "c": "3",
    }


@given(st.text(max_size=60))
def test_no_baggage_is_an_error(value: str) -> None:
    baggage_from_environment({"BAGGAGE": value}, list[str]().append)
