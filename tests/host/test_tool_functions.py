"""A function becomes a tool: its signature a JSON Schema, its arguments the annotated types, its value a result."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from claude_agent_sdk import ToolAnnotations, tool
from pydantic import BaseModel, Field

from agent_runner.contract.callbacks import MAX_DOCUMENT
from host_client import AgentOptions, HookMatcher, current_call, host_tool
from host_client.client._host_functions import HostFunctions
from host_client.client._tool_results import hook_output, tool_result
from host_client.client.host_tools import as_host_tool
from host_client.errors import ConfigurationError
from tests.support.pictures import PDF, png


@dataclass
class Period:
    """Two days."""

    first: date
    last: date | None = None


class Customer(BaseModel):
    """A model of pydantic."""

    name: str


class Query(TypedDict):
    """The arguments of a tool of the SDK."""

    text: str


@host_tool
def search(
    text: Annotated[str, "What to find"],
    kind: Literal["open", "paid"] = "open",
    limit: Annotated[int, msgspec.Meta(ge=1, description="How many")] = 10,
    period: Period | None = None,
    tags: list[str] = [],  # noqa: B006
) -> list[str]:
    """Find orders.

    The newest first.
    """
    return [text, kind, str(limit), str(period), *tags]


@host_tool(name="of-customer", description="Orders of a customer.", timeout=5, idempotent=True, read_only=True)
async def of_customer(customer: Customer, least: Annotated[int, Field(ge=1, description="At least")] = 1) -> str:
    return f"{customer.name} {least}"


def test_the_model_gets_the_name_the_docstring_and_the_types() -> None:
    assert (search.name, search.description) == ("search", "Find orders.\n\nThe newest first.")
    assert search.input_schema == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to find"},
            "kind": {"enum": ["open", "paid"], "default": "open"},
            "limit": {"type": "integer", "minimum": 1, "description": "How many", "default": 10},
            "period": {"anyOf": [{"$ref": "#/$defs/Period"}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["text"],
        "additionalProperties": False,
        "$defs": search.input_schema["$defs"],
    }
    assert list(search.input_schema["$defs"]) == ["Period"]


def test_the_decorator_takes_other_words_and_terms() -> None:
    definition = of_customer.definition
    assert (definition.name, definition.description, definition.timeout) == ("of-customer", "Orders of a customer.", 5)
    assert (of_customer.idempotent, definition.annotations) == (True, {"readOnlyHint": True})
    least = of_customer.input_schema["properties"]["least"]
    assert (least["minimum"], least["description"], least["default"]) == (1, "At least", 1)


def test_a_tool_can_still_be_called_as_its_function() -> None:
    assert search("pens", limit=2) == ["pens", "open", "2", "None"]


def test_arguments_become_the_annotated_types() -> None:
    given = {"text": "pens", "period": {"first": "2026-11-30"}, "tags": ["a"]}
    assert search.prepare(given)() == ["pens", "open", "10", str(Period(date(2026, 11, 30))), "a"]
    call = of_customer.prepare({"customer": {"name": "ada"}})
    assert isinstance(call, functools.partial)
    assert call.keywords == {"customer": Customer(name="ada"), "least": 1}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"text": 3}, r"Expected `str`, got `int` - at `\$\.text`"),
        ({}, "missing required field `text`"),
        ({"text": "a", "limit": 0}, r"`\$\.limit`"),
        ({"text": "a", "period": {"first": "soon"}}, r"`\$\.period\.first`"),
        ({"text": "a", "kind": "lost"}, r"`\$\.kind`"),
        ({"text": "a", "lmit": 1}, "there is no argument 'lmit'; there are: text, kind, limit, period, tags"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        search.prepare(given)


def test_a_wrong_argument_is_named_by_pydantic_too() -> None:
    with pytest.raises(ValueError, match=r"customer\.name[\s\S]*least"):
        of_customer.prepare({"customer": {}, "least": 0})


def of_args(*texts: str) -> None:
    """Take any."""


def of_kwargs(**texts: str) -> None:
    """Take any."""


def of_positions(text: str, /) -> None:
    """Take one."""


def untyped(text) -> None:  # type: ignore[no-untyped-def]
    """Take one."""


def unknown(text: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Take one."""


def of_function(text: Callable[[], None]) -> None:
    """Take a function."""


def undescribed(text: str) -> None: ...


REFUSED: list[tuple[Any, str]] = [
    (of_args, r"^of_args cannot be a host tool: its parameter '\*texts: str' cannot be passed by name$"),
    (of_kwargs, r"^of_kwargs cannot be a host tool: its parameter '\*\*texts: str' cannot be passed by name$"),
    (of_positions, "^of_positions cannot be a host tool: its parameter 'text: str' cannot be passed by name$"),
    (untyped, "^untyped cannot be a host tool: its parameter 'text' has no type: annotate it$"),
    (unknown, "^unknown cannot be a host tool: its signature cannot be read: NameError"),
    (of_function, "^of_function cannot be a host tool: "),
    (undescribed, "^the host tool undescribed needs a docstring or description=… for the model$"),
    (lambda: None, "^the host tool '<lambda>' needs another name: 1 to 64 letters"),
    (3, r"^host_tools takes functions, such as \[search_orders\], not 3$"),
    (Period, r"^host_tools takes functions"),
]


@pytest.mark.parametrize(("function", "fault"), REFUSED)
def test_a_function_that_no_model_can_call_is_refused(function: Any, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        as_host_tool(function)


@pytest.mark.parametrize("timeout", [0, -1, 86_401, float("nan"), "soon"])
def test_a_wrong_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="the timeout of the host tool search takes seconds above 0, at most"):
        host_tool(name="search", timeout=timeout)(search.function)


class Shop:
    """A class with a method."""

    def find(self, text: str) -> str:
        """Find."""
        return text


def test_methods_and_partial_functions_are_tools() -> None:
    assert as_host_tool(Shop().find).prepare({"text": "a"})() == "a"
    named = host_tool(name="found", description="Find.")(functools.partial(search.function, kind="paid"))
    assert named.prepare({"text": "a"})() == ["a", "paid", "10", "None"]


SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.mark.parametrize("schema", [{"text": Annotated[str, "What"]}, Query, SCHEMA, {"type": "object"}])
def test_a_tool_of_the_sdk_is_taken_as_it_is(schema: Any) -> None:
    @tool("find", "Find.", schema, ToolAnnotations(readOnlyHint=True))
    async def find(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": str(arguments)}]}

    taken = as_host_tool(find)
    assert (taken.name, taken.description, taken.annotations) == ("find", "Find.", {"readOnlyHint": True})
    assert taken.input_schema["type"] == "object"
    assert "properties" in taken.input_schema
    call = taken.prepare({"text": "a"})
    assert isinstance(call, functools.partial)
    assert call.args == ({"text": "a"},)


def test_arguments_of_a_tool_of_the_sdk_are_checked_where_they_have_types() -> None:
    @tool("find", "Find.", {"text": str})
    async def find(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments

    with pytest.raises(ValueError, match=r"`\$\.text`"):
        as_host_tool(find).prepare({"text": 3})


def text(of: str) -> dict[str, Any]:
    return {"type": "text", "text": of}


PNG = png(2, 2)
IMAGE = {"type": "image", "data": base64.b64encode(PNG).decode(), "mimeType": "image/png"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("found", [text("found")]),
        (None, [text("Done.")]),
        (PNG, [IMAGE]),
        (["a picture", PNG, {"of": 1}], [text("a picture"), IMAGE, text('{"of":1}')]),
        (["a", "b"], [text('["a","b"]')]),
        ({"content": "of a file"}, [text('{"content":"of a file"}')]),
        (3.5, [text("3.5")]),
        (Period(date(2026, 11, 30)), [text('{"first":"2026-11-30","last":null}')]),
        ([Customer(name="ada")], [text('[{"name":"ada"}]')]),
        ({"content": [text("whole")]}, [text("whole")]),
    ],
)
def test_a_value_becomes_blocks(value: Any, expected: list[Any]) -> None:
    assert tool_result(value) == {"content": expected}


def test_a_whole_result_can_be_an_error() -> None:
    assert tool_result({"content": [text("no")], "is_error": True}) == {"content": [text("no")], "is_error": True}


@pytest.mark.parametrize(
    ("value", "fault"), [(PDF, "bytes are the content of a PNG, JPEG"), (object(), "object has no form in JSON")]
)
def test_a_value_without_a_form_is_refused(value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        tool_result(value)


def test_a_hook_returns_a_dict_or_nothing() -> None:
    assert (hook_output(None), hook_output({"continue_": False})) == ({}, {"continue_": False})
    with pytest.raises(ValueError, match="a hook returns a dict, not bool"):
        hook_output(False)


def test_outside_of_a_call_there_is_no_current_one() -> None:
    with pytest.raises(LookupError, match="outside of a host tool or hook"):
        current_call()


def check(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("hooks", "fault"),
    [
        ({"PreTool": [HookMatcher(hooks=[check])]}, "hooks: there is no event 'PreTool'; there are: PreToolUse, Post"),
        ({"Stop": check}, "hooks takes matchers by event, such as"),
        ({"Stop": [check]}, "hooks takes matchers by event, such as"),
        ({"Stop": [HookMatcher(hooks=["check"])]}, "hooks takes matchers by event, such as"),  # type: ignore[list-item]
        ({"Stop": [HookMatcher(hooks=[check], timeout=-1)]}, "the timeout of a Stop hook takes seconds above 0"),
        ({"Stop": [HookMatcher(3, [check])]}, "host_tools and hooks: .*matcher"),  # type: ignore[arg-type]
    ],
)
def test_wrong_hooks_are_refused(hooks: Any, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        HostFunctions((), hooks)


def test_hooks_are_named_by_their_functions() -> None:
    hooks = HostFunctions(
        (), {"Stop": [HookMatcher(hooks=[check, check])], "PreToolUse": [HookMatcher("Bash", [check])]}
    )
    names = [(hook.event, hook.id, hook.matcher, hook.timeout) for hook in hooks.definitions.hooks]
    assert names == [("Stop", "check", None, 60), ("Stop", "check#2", None, 60), ("PreToolUse", "check#3", "Bash", 60)]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="host_tools and hooks: two tools are named 'mcp__host__search'"):
        HostFunctions([search, search])


def test_definitions_that_are_too_long_are_refused() -> None:
    long = host_tool(name="long", description="x" * MAX_DOCUMENT)(search.function)
    with pytest.raises(
        ConfigurationError, match="bytes as JSON, at most 120,000 can be sent: shorten the descriptions"
    ):
        HostFunctions([long])


def test_the_name_of_the_tools_server_is_taken() -> None:
    options = AgentOptions(mcp_servers={"host": "my_tools:server"})
    with pytest.raises(ConfigurationError, match="mcp_servers: the name 'host' is that of the server of host_tools"):
        HostFunctions([search]).check(options)
    HostFunctions().check(options)
