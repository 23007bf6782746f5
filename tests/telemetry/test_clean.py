"""The host cleans every text of a sandbox's spans before any exporter or the result gets them."""

from __future__ import annotations

import base64
import json
import logging
import unicodedata
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.trace import ReadableSpan

from agent_runner.contract.messages import text_message
from agent_runner.contract.otlp_messages import readable
from agent_runner.contract.spans import Value
from host_client.telemetry.export.console import otlp_json
from host_client.telemetry.relay import clean
from host_client.telemetry.relay.decoding import decode
from tests.runner.secret_corpus import CASES, LOOK_ALIKES

TRACE = "a" * 32
KEY = "sk-ant-api03-Pl4nt3dPl4nt3d"
EVIL = f"a\r\nb\x1b[31m\u202ec\u061cd\u2028 {KEY} ada@example.org Bearer Pl4nt3d.token=="
CLEAN = "a b [31m c d  [redacted] [redacted] [redacted]"


def attribute(key: str, value: Any) -> KeyValue:
    match value:
        case str():
            return KeyValue(key=key, value=AnyValue(string_value=value))
        case bool():
            return KeyValue(key=key, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=key, value=AnyValue(int_value=value))
        case _:
            items = [AnyValue(string_value=item) for item in value]
            return KeyValue(key=key, value=AnyValue(array_value=ArrayValue(values=items)))


def request(**attributes: Any) -> ExportTraceServiceRequest:
    """Return a request with one span; ``__`` in an attribute's name stands for a dot."""
    made = ExportTraceServiceRequest()
    span = made.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes.fromhex(TRACE), b"\x01" * 8, "execute_tool Bash"
    span.start_time_unix_nano, span.end_time_unix_nano = 5, 9
    span.attributes.extend(attribute(name.replace("__", "."), value) for name, value in attributes.items())
    return made


def relayed(
    made: ExportTraceServiceRequest, common: Mapping[str, Value] = MappingProxyType({}), given: Collection[str] = ()
) -> ReadableSpan:
    otlp = base64.b64encode(made.SerializeToString()).decode()
    request = decode(otlp, trace_ids=frozenset({TRACE}), common=common, given=given)
    (span,) = readable(request.SerializeToString())
    return span


def attributes(**given: Any) -> dict[str, Any]:
    return dict(relayed(request(**given)).attributes or {})


def spoiled() -> ExportTraceServiceRequest:
    """Return a request with the same hostile text in every text field."""
    made = request(names=[EVIL], value=EVIL)
    (of_resource,) = made.resource_spans
    (of_scope,) = of_resource.scope_spans
    (span,) = of_scope.spans
    of_resource.resource.attributes.extend([attribute("service.name", EVIL), attribute("host.name", EVIL)])
    of_resource.schema_url = of_scope.schema_url = EVIL
    of_scope.scope.name = of_scope.scope.version = span.name = span.status.message = span.trace_state = EVIL
    of_scope.scope.attributes.append(attribute(EVIL, EVIL))
    span.status.code = Status.STATUS_CODE_ERROR
    span.attributes.append(attribute(EVIL, EVIL))
    span.events.add(name=EVIL, attributes=[attribute(EVIL, EVIL)])
    span.links.add(trace_id=b"\x02" * 16, span_id=b"\x03" * 8, trace_state=EVIL, attributes=[attribute(EVIL, EVIL)])
    return made


def test_no_place_of_a_span_holds_a_secret_or_a_control_character(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        span = relayed(spoiled())
    assert span.attributes == {"names": (CLEAN,), "value": CLEAN, CLEAN: CLEAN}
    assert (span.name, span.status.description) == (CLEAN, CLEAN)
    assert [(event.name, event.attributes) for event in span.events] == [(CLEAN, {CLEAN: CLEAN})]
    scope = span.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version) == (CLEAN, CLEAN)
    everything = json.dumps(otlp_json([span]), ensure_ascii=False) + caplog.text
    assert "Pl4nt3d" not in everything
    assert {each for each in everything if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp")} <= {"\n"}


def test_a_resource_says_which_program_it_was_and_nothing_that_a_backend_takes_for_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.name=host,host.name=h")
    made = request()
    forged = {
        "service.name": "agent_runner",
        "telemetry.sdk.language": "python",
        "service.version": 7,
        "langfuse.user.id": "victim",
        "deployment.environment.name": "production",
        "deployment.environment": "production",
        "service.namespace": "billing",
        "user.id": "victim",
        "tenant.id": "victim",
        "session.id": "victim",
    }
    made.resource_spans[0].resource.attributes.extend(attribute(*pair) for pair in forged.items())
    assert relayed(made).resource.attributes == {
        "service.name": "agent_runner",
        "telemetry.sdk.language": "python",
        "deployment.environment.name": "staging",
    }


@pytest.mark.parametrize(
    "name",
    [
        "user.id",
        "\nuser.id",
        "user.id\u200b",
        " tenant.id ",
        "langfuse." + "x" * 500,
        "gen_ai.usage.cost",
        "ai.telemetry.metadata.userId",
        "ai.telemetry.metadata.sessionId",
        "tag.tags",
    ],
)
def test_a_name_that_is_the_hosts_to_say_is_left_out_also_in_disguise(name: str) -> None:
    made = request(fine=1)
    (span,) = made.resource_spans[0].scope_spans[0].spans
    span.attributes.append(attribute(name, "victim"))
    span.events.add(name="e", attributes=[attribute(name, "victim")])
    cleaned = relayed(made, common={"session.id": "s"})
    assert cleaned.attributes == {"fine": 1, "session.id": "s"}
    assert [event.attributes for event in cleaned.events] == [{}]


@pytest.mark.parametrize("unwanted", [0, 1, 4, 5, 40])
def test_what_is_wanted_stays_in_its_order_however_much_is_taken_out(unwanted: int) -> None:
    made = request(a=1, session__id="not mine", b=2)
    (span,) = made.resource_spans[0].scope_spans[0].spans
    for number in range(unwanted):
        span.attributes.insert(number, attribute("a", number))  # of attributes with the same name the last counts
    assert list((relayed(made).attributes or {}).items()) == [("a", 1), ("b", 2)]


def test_what_the_host_said_comes_back_as_it_was() -> None:
    given = {"ada@example.org", "vendor=1"}
    made = request(approval__decided_by="ada@example.org", other="bob@example.org")
    made.resource_spans[0].scope_spans[0].spans[0].trace_state = "vendor=1"
    span = relayed(made, common={"user.id": "ada@example.org"}, given=given)
    assert span.attributes == {
        "approval.decided_by": "ada@example.org",
        "other": "[redacted]",
        "user.id": "ada@example.org",
    }
    context = span.get_span_context()
    assert context is not None
    assert context.trace_state.to_header() == "vendor=1"


def test_a_trace_state_that_the_host_did_not_give_is_none() -> None:
    made = request()
    made.resource_spans[0].scope_spans[0].spans[0].trace_state = "vendor=mine"
    context = relayed(made).get_span_context()
    assert context is not None
    assert not context.trace_state


@pytest.mark.parametrize("name", ["agent.session", "sandbox.create", "sandbox.cleanup"])
def test_a_span_that_only_the_host_makes_is_told_apart(name: str) -> None:
    made = request()
    made.resource_spans[0].scope_spans[0].spans[0].name = name
    assert relayed(made).name == f"relayed {name}"


def test_everything_is_bounded_in_number_and_length() -> None:
    made = request(**{f"n{number}": number for number in range(1000)})
    (span,) = made.resource_spans[0].scope_spans[0].spans
    span.name = "n" * 100_000
    for _ in range(1000):
        event = span.events.add(name="e" * 100_000)
        event.attributes.extend(attribute(f"{number}", "v" * 100) for number in range(200))
        span.links.add(trace_id=b"\x02" * 16, span_id=b"\x03" * 8)
    cleaned = relayed(made)
    assert len(cleaned.name) == len(cleaned.events[0].name) == 200
    assert (len(cleaned.attributes or ()), len(cleaned.events), len(cleaned.links)) == (128, 128, 0)
    assert {len(event.attributes or ()) for event in cleaned.events} == {128}
    long = attributes(text="t" * 100_000, many=["i" * 100_000] * 1000, **{"k" * 100_000: 1})
    assert (len(long["text"]), len(long["many"]), len(long["many"][0])) == (clean.MAX_TEXT, 128, clean.MAX_TEXT)
    assert max(map(len, long)) == 200


def test_content_is_kept_whole_and_stays_json_where_a_secret_is_taken_out() -> None:
    said = 'line one\nline two \N{FAMILY} "quoted"\n' * 1000
    whole = text_message("user", said)
    assert attributes(gen_ai__input__messages=whole) == {"gen_ai.input.messages": whole}
    forged = text_message("user", f'say "pass: abc" then {KEY}\nand \x1b go')
    (only,) = attributes(gen_ai__input__messages=forged).values()
    assert json.loads(only) == [
        {"role": "user", "parts": [{"type": "text", "content": 'say "pass: abc" then [redacted]\nand \x1b go'}]}
    ]
    assert attributes(gen_ai__tool__call__arguments=f'{{"key": "{KEY}"}}') == {
        "gen_ai.tool.call.arguments": '{"key": "[redacted]"}'
    }
    assert attributes(gen_ai__input__messages="[" * 10_000) == {"gen_ai.input.messages": "[" * 10_000}


@given(st.one_of(st.text(max_size=300), st.sampled_from([*(text for text, _ in CASES), *LOOK_ALIKES])))
def test_a_cleaned_text_is_one_line_and_cleaning_it_again_changes_nothing(text: str) -> None:
    cleaned = clean.text(text)
    assert len(cleaned.splitlines()) <= 1
    assert clean.text(cleaned) == cleaned
