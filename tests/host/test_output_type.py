"""An answer becomes an instance of the type that was asked for, or the run is an error that keeps the text."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jsonschema
import pytest
from pydantic import BaseModel

from agent_runner.contract.protocol import AnyEvent
from host_client import AgentOptions, events, run_agent
from host_client.client._output import output_form
from host_client.errors import ConfigurationError
from host_client.sandbox import LocalSandbox
from tests.support.hosts import e2b_lab, host_lab, views

pytestmark = pytest.mark.anyio


@dataclass
class Finding:
    """A part of an answer."""

    file: str
    line: int = 0


@dataclass
class Review:
    """An answer with parts."""

    findings: list[Finding]
    verdict: Literal["good", "bad"]


class Weather(BaseModel):
    """An answer as a pydantic model."""

    city: str
    degrees: float


class Pair(NamedTuple):
    """An answer whose schema has no form that Claude Code and the API both know."""

    name: str
    number: int


@dataclass
class Forecast:
    """A dataclass with a pydantic model."""

    days: list[Weather]
    pair: tuple[str, int]


@dataclass
class Odd:
    """An answer that is even is refused by code of the type."""

    number: int

    def __post_init__(self) -> None:
        if self.number % 2 == 0:
            raise RuntimeError("it is even")


BERN = {"city": "Bern", "degrees": 3.5}
FINDINGS = [{"file": "a.py", "line": 3}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def script(*outputs: Any) -> str:
    """Return a script whose model gives these outputs, one after the other."""
    replies = ", ".join(f"{{tools: [{{name: StructuredOutput, input: {output}}}]}}" for output in outputs)
    return f"conversations: {{main: {{replies: [{replies}]}}}}"


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (Review, {"findings": FINDINGS, "verdict": "bad"}, Review([Finding("a.py", 3)], "bad")),
        (Weather, BERN, Weather(city="Bern", degrees=3.5)),
        (Forecast, {"days": [BERN], "pair": ["a", 1]}, Forecast([Weather(city="Bern", degrees=3.5)], ("a", 1))),
        (Pair, {"value": ["a", 1]}, Pair("a", 1)),
        (dict[int, str], {"1": "one"}, {1: "one"}),
        ({**SCHEMA, "$schema": "https://json-schema.org/draft/2020-12/schema"}, {"a": 1}, {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, {"value": [1, 2]}, [1, 2]),
    ],
    ids=["dataclass", "pydantic", "both", "tuple", "dict", "draft", "schema-of-a-list"],
)
async def test_the_answer_is_an_instance(kind: Any, given: Any, expected: Any) -> None:
    with host_lab(script(given)) as lab:
        result = await run_agent("go", AgentOptions(output_type=kind), environ=lab.environ)
    assert not result.is_error, result.error_message
    assert result.output == expected
    assert result.structured_output == given


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (list[Finding], {"value": FINDINGS}, [Finding("a.py", 3)]),
        (Literal["good", "bad"], {"value": "good"}, "good"),
        (SCHEMA, {"a": 1}, {"a": 1}),
    ],
    ids=["list", "literal", "schema"],
)
def test_an_answer_of_its_form_is_read_as_an_instance(kind: Any, given: Any, expected: Any) -> None:
    form = output_form(kind)
    jsonschema.validate(given, form.schema)
    assert form.read(given) == expected


async def test_the_cli_asks_again_for_an_answer_that_does_not_fit() -> None:
    right = {"findings": FINDINGS, "verdict": "good"}
    with e2b_lab(script({"findings": 3, "verdict": "good"}, right)) as lab:
        options = AgentOptions(output_type=Review)
        result = await run_agent("go", options, sandbox=lab.sandbox(), environ=lab.environ)
        assert len(lab.model.requests) == 2
    assert result.output == Review([Finding("a.py", 3)], "good")
    calls = [span for span in views(result.spans) if span.name == "execute_tool StructuredOutput"]
    assert [call.attributes["tool.is_error"] for call in calls] == [True, False]
    about = {call.attributes["gen_ai.tool.description"] for call in calls}
    assert about == {"Gives the answer of the turn in the form that output_format asks for."}


async def test_a_run_without_the_answer_is_an_error_that_keeps_the_text() -> None:
    with host_lab("conversations: {main: {replies: [{text: It is fine.}, {text: It is fine.}]}}") as lab:
        result = await run_agent("go", AgentOptions(output_type=Review), environ=lab.environ)
    assert (result.is_error, result.error_type, result.text, result.output) == (True, "tool_error", "It is fine.", None)
    assert result.error_message is not None and "without the structured output" in result.error_message


async def test_an_answer_that_the_type_refuses_is_an_error_that_keeps_it() -> None:
    with host_lab(script({"number": 4})) as lab:
        result = await run_agent("go", AgentOptions(output_type=Odd), environ=lab.environ)
    assert (result.error_type, result.output, result.structured_output) == ("tool_error", None, {"number": 4})
    assert result.error_message == "the structured output does not fit output_type: it is even"


async def test_a_turn_of_the_cli_itself_takes_no_answer_away(tmp_path: Path) -> None:
    started = "{tools: [{name: Bash, input: {command: cat gate, run_in_background: true}}]}"
    answer = "{tools: [{name: StructuredOutput, input: {a: 1}}]}"
    woken = "{text: It is ready.}, {text: It is ready.}"  # the CLI asks once more for the answer
    with host_lab(f"conversations: {{main: {{replies: [{started}, {answer}, {woken}]}}}}") as lab:
        gate = tmp_path / "gate"
        os.mkfifo(gate)

        def open_gate(event: AnyEvent) -> None:
            if isinstance(event, events.Result) and event.data.turn == 1:
                gate.write_text("done")

        options = AgentOptions(output_type=SCHEMA, allowed_tools=("Bash",))
        result = await run_agent(
            "go", options, sandbox=LocalSandbox(work=tmp_path), on_event=open_gate, environ=lab.environ
        )
    assert (result.error_message, result.output, result.text) == (None, {"a": 1}, "It is ready.")


REF = {"$ref": "#/definitions/a", "definitions": {"a": {"type": "object", "properties": {"b": {"$ref": "#"}}}}}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ({"type": "array", "items": {"$ref": "#"}}, {"type": "array", "items": {"$ref": "#/properties/value"}}),
        (
            {
                "type": "object",
                "properties": {"discriminator": {"type": "string"}, "$schema": {"const": {"$schema": 1}}},
            },
            None,
        ),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        (REF, {"type": "object", "properties": {"b": {"$ref": "#"}}}),
    ],
    ids=["recursive", "names", "untyped", "reference"],
)
def test_the_schema_means_what_it_did(kind: dict[str, Any], schema: dict[str, Any] | None) -> None:
    before = copy.deepcopy(kind)
    form = output_form(kind).schema
    assert form == (schema or kind) or form["properties"]["value"] == schema
    assert kind == before


@pytest.mark.parametrize("kind", [3, print, object(), Weather(city="Bern", degrees=1), list["Unknown"]])  # type: ignore[name-defined]  # noqa: F821
def test_what_is_no_type_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="output_type takes a dataclass, a pydantic model, a JSON Schema"):
        AgentOptions(output_type=kind)


def test_a_type_and_a_format_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="output_type and output_format exclude each other"):
        AgentOptions(output_type=Review, output_format={"type": "json_schema", "schema": SCHEMA})
