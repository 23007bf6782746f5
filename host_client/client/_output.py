"""The type of a run's structured output: its JSON Schema, and the conversion of the agent's answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from host_client.errors import ConfigurationError

_VALUE = "value"
"""The property that holds an answer that is no object, as Claude's tools take objects only."""


class OutputType(NamedTuple):
    """A JSON Schema of objects, and the function that turns such an object into the caller's type.

    ``read`` raises `ValueError` for an object that does not fit.
    """

    schema: dict[str, Any]
    read: Callable[[Any], Any]


def output_type(kind: Any) -> OutputType:
    """Return the form of an answer of the type ``kind``; raise `ConfigurationError` if it cannot be one.

    ``kind`` is a JSON Schema as a dict, a pydantic model, or another type that msgspec knows: a dataclass, a Struct, a
    TypedDict, ``list[int]``, ``Literal["yes", "no"]``.
    """
    if isinstance(kind, Mapping):
        return _object(dict(cast("Mapping[str, Any]", kind)), _as_given)
    if hasattr(kind, "model_json_schema"):  # pydantic, which need not be installed
        return _object(kind.model_json_schema(), kind.model_validate)
    try:
        (schema,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    except TypeError as error:
        raise ConfigurationError(
            f"output_type takes a dataclass, a pydantic model, a JSON Schema or a type such as list[str]: {error}"
        ) from None
    return _object(_inlined(schema, definitions), lambda value: msgspec.convert(value, kind))


def _as_given(value: Any) -> Any:
    return value


def _inlined(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose first level is no reference, with the definitions that it may refer to."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    whole = definitions[name] if name else schema
    return {**whole, "$defs": definitions} if definitions else whole


def _object(schema: dict[str, Any], read: Callable[[Any], Any]) -> OutputType:
    """Return a schema of objects as it is, and another one as that of an object with one property."""
    if schema.get("type") == "object":
        return OutputType(schema, read)
    definitions = schema.pop("$defs", None)

    def inner(value: dict[str, Any]) -> Any:
        return read(value[_VALUE])

    whole = {"type": "object", "properties": {_VALUE: schema}, "required": [_VALUE], "additionalProperties": False}
    if definitions is not None:
        whole["$defs"] = definitions
    return OutputType(whole, inner)
