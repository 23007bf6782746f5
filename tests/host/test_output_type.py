"""An answer becomes an instance of the type that was asked for, or the run is an error that keeps the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from host_client import AgentOptions, run_agent
from host_client.errors import ConfigurationError
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
        (Weather, {"city": "Bern", "degrees": 3.5}, Weather(city="Bern", degrees=3.5)),
        (list[Finding], {"value": FINDINGS}, [Finding("a.py", 3)]),
        (Literal["good", "bad"], {"value": "good"}, "good"),
        (SCHEMA, {"a": 1}, {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, {"value": [1, 2]}, [1, 2]),
    ],
    ids=["dataclass", "pydantic", "list", "literal", "schema", "schema-of-a-list"],
)
async def test_the_answer_is_an_instance(kind: Any, given: Any, expected: Any) -> None:
    with host_lab(script(given)) as lab:
        result = await run_agent("go", AgentOptions(output_type=kind), environ=lab.environ)
    assert not result.is_error, result.error_message
    assert result.output == expected
    assert result.structured_output == given


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


@pytest.mark.parametrize("kind", [3, print, object()])
def test_what_is_no_type_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="output_type takes a dataclass, a pydantic model, a JSON Schema"):
        AgentOptions(output_type=kind)


def test_a_type_and_a_format_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="output_type and output_format exclude each other"):
        AgentOptions(output_type=Review, output_format={"type": "json_schema", "schema": SCHEMA})
