"""The arguments of a function as a JSON Schema, and their conversion to the annotated types. Pure."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._output import OutputForm, object_form

_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ArgumentsForm(NamedTuple):
    """A JSON Schema of arguments, and the function that converts them; it raises an error that names a wrong one."""

    schema: dict[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def form_of_function(function: Callable[..., Any]) -> ArgumentsForm:
    """Return the form of a function's arguments; raise `ValueError` with the reason if the model cannot call it."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except Exception as error:  # evaluating an annotation may raise any
        raise ValueError(f"its signature cannot be read: {error!r}") from None
    for each in parameters:
        if each.kind not in _KINDS:
            raise ValueError(f"its parameter {str(each)!r} cannot be passed by name")
        if each.annotation is inspect.Parameter.empty:
            raise ValueError(f"its parameter {each.name!r} has no type: annotate it")
    defaults = {each.name: each.default for each in parameters}
    return _form_of({each.name: each.annotation for each in parameters}, defaults)


def form_of_types(types: Mapping[str, Any]) -> ArgumentsForm:
    """Return the form of arguments that all have to be given; raise `ValueError` as `form_of_function`."""
    return _form_of(types, {})


def _form_of(types: Mapping[str, Any], defaults: Mapping[str, Any]) -> ArgumentsForm:
    # Both msgspec and pydantic know dataclasses, so the annotations may be of either.
    fields = [(name, kind, _field(defaults.get(name, inspect.Parameter.empty))) for name, kind in types.items()]
    form = object_form(dataclasses.make_dataclass("Arguments", fields, kw_only=True))
    return ArgumentsForm(_described(form.schema, types), _reader(form, types))


def _field(default: object) -> Any:
    if default is inspect.Parameter.empty:
        return dataclasses.field()
    if default is None or isinstance(default, str | int | float):
        return dataclasses.field(default=default)
    return dataclasses.field(default_factory=lambda: default)  # no JSON, so it is not in the schema


def _described(schema: dict[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with the texts of ``Annotated[…, "text"]`` as descriptions, as the SDK has them."""
    properties: dict[str, Any] = dict(schema.get("properties", {}))
    for name, kind in types.items():
        for text in getattr(kind, "__metadata__", ()):
            if isinstance(text, str):
                properties[name] = {"description": text, **properties[name]}
    kept = {key: value for key, value in schema.items() if key != "title"}
    return {**kept, "properties": properties, "additionalProperties": False}


def _reader(form: OutputForm, types: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def read(arguments: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(arguments) - set(types)):
            raise ValueError(f"there is no argument {unknown[0]!r}; there are: {', '.join(types) or 'none'}")
        converted = form.read(dict(arguments))
        return {name: getattr(converted, name) for name in types}

    return read
