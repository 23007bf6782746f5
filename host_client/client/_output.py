"""Types of the caller as JSON Schemas, and the conversion of JSON to them: of answers and of arguments. Pure."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast, get_type_hints

import msgspec

from host_client.errors import ConfigurationError

_VALUE = "value"
"""The property that holds an answer that is no object, as Claude's tools take objects only."""

_DEFINITIONS = ("$defs", "definitions")
_WITH_NAMES = ("properties", "patternProperties", *_DEFINITIONS)
"""Keywords whose value has a schema for each name."""

_WITH_DATA = ("const", "default", "enum", "examples")
_LEFT_OUT = ("$schema", "discriminator")
"""Keywords with which Claude Code refuses a schema; it can be checked without them."""

_MARKS_OF_PYDANTIC = ("pydantic", "annotated_types")
"""Packages of the objects in ``Annotated`` that only pydantic reads."""


class OutputForm(NamedTuple):
    """A JSON Schema of objects, and the function that turns such an object into the caller's type.

    ``read`` raises what the caller's type raises for an object that does not fit.
    """

    schema: dict[str, Any]
    read: Callable[[Any], Any]


def output_form(kind: Any) -> OutputForm:
    """Return the form of an answer of the type ``kind``; raise `ConfigurationError` if it cannot be one.

    ``kind`` is a JSON Schema as a dict, or a type that msgspec or pydantic knows: a dataclass, a pydantic model, a
    TypedDict, ``list[int]``, ``Literal["yes", "no"]``.
    """
    try:
        whole, read = object_form(kind)
    except ValueError as error:
        raise ConfigurationError(
            f"output_type takes a dataclass, a pydantic model, a JSON Schema or a type such as list[str]: {error}"
        ) from None
    if whole.get("type") == "object":
        return OutputForm(whole, read)

    def read_value(answer: dict[str, Any]) -> Any:
        return read(answer[_VALUE])

    return OutputForm(_wrapped(whole), read_value)


def object_form(kind: Any) -> OutputForm:
    """Return the form of a type whose instances are objects in JSON; raise `ValueError` if no library knows the type.

    Any other type has a form too, but Claude's tools take objects only.
    """
    try:
        schema, read = _schema_and_reader(kind)
    except Exception as error:  # each library has its own
        raise ValueError(" ".join(str(error).split())[:300]) from None
    return OutputForm(_taken_by_claude_code(_resolved(schema)), read)


def _schema_and_reader(kind: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    if isinstance(kind, Mapping):
        return dict(cast("Mapping[str, Any]", kind)), _as_given
    if hasattr(kind, "model_json_schema") or _has_marks_of_pydantic(kind):
        return _of_pydantic(kind)
    try:
        return _of_msgspec(kind)
    except Exception:
        if "pydantic" not in sys.modules:
            raise
        return _of_pydantic(kind)


def _has_marks_of_pydantic(kind: Any) -> bool:
    """Return whether a field of a dataclass is ``Annotated`` for pydantic, which msgspec would ignore."""
    if "pydantic" not in sys.modules or not dataclasses.is_dataclass(kind):
        return False
    hints = get_type_hints(kind, include_extras=True).values()
    marks = (mark for hint in hints for mark in getattr(hint, "__metadata__", ()))
    return any(type(mark).__module__.partition(".")[0] in _MARKS_OF_PYDANTIC for mark in marks)


def _as_given(answer: Any) -> Any:
    return answer


def _of_msgspec(kind: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    whole = {**schema, "$defs": definitions} if definitions else schema
    return whole, lambda answer: msgspec.convert(answer, kind, str_keys=True)


def _of_pydantic(kind: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    from pydantic import TypeAdapter  # the caller has imported it

    adapter = TypeAdapter[Any](kind)
    # JSON, as a strict model takes a date or an Enum in no other form.
    return adapter.json_schema(), lambda answer: adapter.validate_json(json.dumps(answer))


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose first level is no reference to one of its definitions, and has the type of objects."""
    where, _, name = str(schema.get("$ref", "")).removeprefix("#/").partition("/")
    if where in _DEFINITIONS and name in schema.get(where, {}):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**rest, **schema[where][name]}
        if f'"#/{where}/{name}"' not in json.dumps(schema):
            others = {key: value for key, value in schema.pop(where).items() if key != name}
            schema |= {where: others} if others else {}
    return {"type": "object", **schema} if "properties" in schema else schema


def _taken_by_claude_code(schema: Any) -> Any:
    """Return a schema without the keywords that Claude Code does not know.

    It knows those of draft 7, and the API those of 2020-12. The two have different forms of a tuple, so a tuple is an
    array of its length with items of any of its types; the order of the types is checked when the answer is converted.
    """
    if isinstance(schema, list):
        return [_taken_by_claude_code(each) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    taken: dict[str, Any] = {}
    for keyword, value in cast("dict[str, Any]", schema).items():
        if keyword in _WITH_NAMES and isinstance(value, dict):
            named = cast("dict[str, Any]", value)
            taken[keyword] = {name: _taken_by_claude_code(each) for name, each in named.items()}
        elif keyword == "prefixItems":
            taken["items"] = {"anyOf": _taken_by_claude_code(value)}
        elif keyword not in (*_LEFT_OUT, *taken):  # `items` beside `prefixItems` is about items after the tuple's
            taken[keyword] = value if keyword in _WITH_DATA else _taken_by_claude_code(value)
    return taken


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object whose only property has the given schema."""
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    value = {key: each for key, each in schema.items() if key not in _DEFINITIONS}
    whole = {"type": "object", "properties": {_VALUE: value}, "required": [_VALUE], "additionalProperties": False}
    return _moved({**whole, **definitions})


def _moved(schema: Any) -> Any:
    """Return a schema whose references to its old first level, and to parts of it, name the property."""
    if isinstance(schema, list):
        return [_moved(each) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value) for key, value in cast("dict[str, Any]", schema).items()}
    ref = moved.get("$ref")
    if isinstance(ref, str) and ref.startswith("#") and not ref.startswith(("#/$defs/", "#/definitions/")):
        moved["$ref"] = f"#/properties/{_VALUE}{ref[1:]}"
    return moved
