"""From 2,000 recorded and hostile telemetry events each destination gets the same fields as from f6f5305.

The redaction has changed since: it has more rules, it takes letters such as ü before a token for its beginning, and it
keeps the names of passwords. So the fields are compared with the redaction of f6f5305 in both, and today's redaction by
how often each planted secret is left.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.compat.canonical import differences
from tests.compat.files import RELAY, RELAYED, read_xz
from tests.compat.recordings import Json
from tests.compat.redaction import PLANTED, recorded_redaction
from tests.compat.relaying import relayed, relayed_sanitized

pytestmark = pytest.mark.timeout(600)

DESTINATIONS = ("otlp", "langfuse", "custom")
SHOWN = 20
"""Maximum number of differences in a failure's message."""

NESTED = {209: "c000000000000159", 557: "c0000000000003a8", 1253: "c00000000000083f"}
"""Indexes of inputs that today's relay refuses, with the end of their span's id.

Their attributes are nested deeper than protobuf's limit of 100 levels. f6f5305 cut their text without parsing it.
"""

MERGED_SCOPES = 68
"""Number of spans in requests with the field ``scope`` twice.

protobuf merges both, as its encoding specification says; f6f5305 kept only the second, which has no name.
"""


@pytest.fixture(scope="module")
def inputs() -> list[tuple[str, str]]:
    """Return the description and the base64 content of each input."""
    return [tuple(json.loads(line)) for line in read_xz(RELAY).split(b"\n") if line]


@pytest.fixture(scope="module")
def before() -> Json:
    """Return the results that f6f5305's host had for the inputs."""
    return json.loads(read_xz(RELAYED))


@pytest.fixture(scope="module")
def now(inputs: list[tuple[str, str]]) -> Json:
    """Return the results of today's host for the inputs, with the redaction of f6f5305."""
    with recorded_redaction():
        return {"whole": relayed([otlp for _, otlp in inputs]), "sanitized": relayed_sanitized(inputs)}


def test_there_are_two_thousand_inputs_and_most_of_them_bring_something(
    inputs: list[tuple[str, str]], before: Json
) -> None:
    assert len(inputs) == 2000
    assert len(before["whole"]["refused"]) < 500
    assert len(before["whole"]["otlp"]) > 2000


@pytest.mark.parametrize("how", ["whole", "sanitized"])
def test_the_same_inputs_are_refused(inputs: list[tuple[str, str]], before: Json, now: Json, how: str) -> None:
    # Compare only the indexes, as the messages may differ.
    then, today = ({int(number) for number in each[how]["refused"]} for each in (before, now))
    about = {number: inputs[number][0] for number in then ^ today} if how == "whole" else {}
    assert today == (then | NESTED.keys() if how == "whole" else then), about


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize("how", ["whole", "sanitized"])
def test_a_destination_gets_the_same_spans_field_for_field(before: Json, now: Json, how: str, destination: str) -> None:
    then, today = (json.loads(json.dumps(each[how][destination])) for each in (before, now))
    for key, span in then.items():
        _add_provider(span, today.get(key, span))
    found = [line for line in differences(then, today) if not _is_of_nested(line)]
    merged = [line for line in found if line.endswith(".scope.name: was 'None', is 'one'")]
    assert [line for line in found if line not in merged][:SHOWN] == []
    assert len(merged) == (MERGED_SCOPES if how == "whole" else 0)


def test_no_planted_secret_is_left_more_often_than_before(inputs: list[tuple[str, str]], before: Json) -> None:
    today = relayed([otlp for _, otlp in inputs])
    for destination in DESTINATIONS:
        then, left = (json.dumps(each[destination], ensure_ascii=False) for each in (before["whole"], today))
        for secret in PLANTED:
            assert left.count(secret) <= then.count(secret), secret
        assert sum(map(left.count, PLANTED)) < 0.6 * sum(map(then.count, PLANTED))


def _add_provider(span: Json, today: Json) -> None:
    """Add the provider of an agent's span that names none: today's host adds it, as f6f5305's runner wrote it."""
    pair = ["gen_ai.provider.name", {"string_value": "anthropic"}]
    attributes: list[list[Any]] = span.get("attributes", [])
    names = [name for name, _ in attributes]
    if ["gen_ai.operation.name", {"string_value": "invoke_agent"}] in attributes and pair[0] not in names:
        attributes.append(pair)
        attributes.sort(key=lambda each: each[0])
        assert pair in today["attributes"]


def _is_of_nested(line: str) -> bool:
    return line.split(":")[0].endswith(tuple(NESTED.values())) and line.endswith(", is 'None'")
