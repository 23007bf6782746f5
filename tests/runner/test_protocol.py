"""Encoded messages can be decoded; other lines are refused or skipped, without a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.contract import protocol
from agent_runner.contract.attachments import AttachedBlock, block_of
from agent_runner.contract.protocol import (
    COMMAND_TYPES,
    ERROR_TYPES,
    EVENT_TYPES,
    AnyCommand,
    AnyEvent,
    EventData,
    Label,
    ProtocolError,
    UnknownEvent,
    command_schema,
    decode_command,
    decode_event,
    encode,
    event_of,
    event_schema,
    input_digest,
    replace_surrogates,
    to_json,
)
from tests.support.attachments import PDF, PNG

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates and controls included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NUMBER = st.floats(0, 1e9)
BLOCKS = st.builds(
    block_of,
    st.sampled_from((PNG, PDF))
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(str.encode),
    st.none() | TEXT,
)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(0, 2**53),
    float: NUMBER,
    bool: st.booleans(),
    type(None): st.none(),
    Any: JSON,
    AttachedBlock: BLOCKS,
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Generate values of a type of the contract."""
    if kind == Label:
        return st.text(st.characters(exclude_categories=("Cc",)), min_size=1, max_size=20)
    if hasattr(kind, "__metadata__"):
        return values(kind.__origin__)
    if kind in OF_TYPE:
        return OF_TYPE[kind]
    origin, args = getattr(kind, "__origin__", None), get_args(kind)
    if origin is list:
        return st.lists(values(args[0]), max_size=2)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values(args[1]), max_size=3)
    if hasattr(kind, "__struct_fields__"):
        return structs(kind)
    if origin is not None and "Literal" in str(origin):
        return st.sampled_from(args)
    return st.one_of(*(values(arg) for arg in args))  # a union


def structs(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = {name: values(hints[name]) for name in kind.__struct_fields__}
    return st.fixed_dictionaries(fields).map(lambda given: kind(**given))


DATA: st.SearchStrategy[EventData] = st.one_of(*(structs(kind) for kind in get_args(EventData)))
COMMANDS: st.SearchStrategy[AnyCommand] = st.one_of(*(structs(kind) for kind in COMMAND_TYPES.values()))


def cleaned(value: Any) -> Any:
    return replace_surrogates(msgspec.to_builtins(value))


@given(DATA, st.none() | st.integers(1, 2**53), st.none() | st.text("0123456789abcdef", min_size=16, max_size=16))
def test_an_event_comes_back_as_it_was_sent(data: EventData, seq: int | None, parent: str | None) -> None:
    event = event_of(data, seq=seq, ts=1.5, trace_id="a" * 32, span_id="b" * 16, parent_span_id=parent)
    line = encode(event)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    line.decode("utf-8")
    back = decode_event(line)
    assert type(back) is type(event)
    assert msgspec.to_builtins(back) == cleaned(event)
    # The type comes first, so that a reader can tell it from the beginning of a long line.
    assert line.startswith(b'{"type":"' + event.type.encode() + b'"')


@given(COMMANDS)
def test_a_command_comes_back_as_it_was_sent(command: AnyCommand) -> None:
    back = decode_command(encode(command))
    assert type(back) is type(command)
    assert cleaned(back) == cleaned(command)


@given(st.binary(max_size=100) | JSON.map(to_json))
def test_no_line_is_a_crash(line: bytes) -> None:
    for decode in (decode_event, decode_command):
        try:
            decode(line)
        except ProtocolError as error:
            assert str(error)


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"null", b"[" * 100_000, b'{"type":"end"}', b'{"type":"end","v":2}', b"\xff", b'{"a":' * 100_000],
    ids=lambda line: repr(line[:20]),
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_a_reader_skips_types_and_fields_it_does_not_know() -> None:
    assert decode_event(b'{"type":"new","seq":7,"data":{"x":1}}') == UnknownEvent(type="new", seq=7)
    event = event_of(
        protocol.EndData(reason="completed", exit_code=0), seq=1, ts=0.5, trace_id="a" * 32, span_id="b" * 16
    )
    wire = json.loads(encode(event))
    wire["since"] = wire["data"]["since"] = "a later minor version"
    assert decode_event(json.dumps(wire).encode()) == event


def test_half_a_surrogate_pair_is_replaced_and_not_refused() -> None:
    assert decode_command(b'{"type":"prompt","text":"a\\ud83e"}') == protocol.Prompt(text="a\ufffd")
    assert replace_surrogates({"\ud83e": ["\udd80", "\U0001f980"]}) == {"\ufffd": ["\ufffd", "\U0001f980"]}


@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_a_digest_does_not_depend_on_the_order_of_keys(tool_input: dict[str, Any]) -> None:
    backwards = dict(reversed(tool_input.items()))
    assert input_digest(tool_input) == input_digest(backwards)
    assert len(input_digest(tool_input)) == 64


def test_a_digest_is_what_anybody_can_compute() -> None:
    # printf '{"a":"\\\\u00e9","b":[1,2.5]}' | sha256sum
    expected = "1d5aa48ef9cd2b6be14efd77e6aa32fc7767713b66a7abf3c772a7863e7c199a"
    assert input_digest({"b": [1, 2.5], "a": "é"}) == expected


def test_the_schemas_name_every_type() -> None:
    assert set(event_schema()["discriminator"]["mapping"]) == set(EVENT_TYPES)
    assert set(command_schema()["discriminator"]["mapping"]) == set(COMMAND_TYPES)
    assert set(EVENT_TYPES) == {
        *("start", "turn_start", "text_delta", "text", "thinking", "tool_use", "tool_result"),
        *("approval_request", "approval_resolved", "question_request", "question_resolved"),
        *("callback_request", "callback_resolved", "message"),
        *(
            "subagent_start",
            "task",
            "result",
            "command_result",
            "agent_changed",
            "heartbeat",
            "error",
            "log",
            "telemetry",
            "end",
        ),
    }
    assert len(ERROR_TYPES) == len(set(ERROR_TYPES)) == 18
    assert set(get_args(AnyEvent)) == set(EVENT_TYPES.values())


@pytest.mark.parametrize("schema", [event_schema, command_schema])
def test_no_description_has_the_indentation_of_its_docstring(schema: Callable[[], dict[str, Any]]) -> None:
    descriptions = [each["description"] for each in schema()["$defs"].values() if "description" in each]
    assert descriptions
    assert [text for text in descriptions if "\n " in text] == []
