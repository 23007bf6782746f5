"""Checks of options and arguments: a value of a wrong type is refused, and the message shows the right form."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from host_client.errors import ConfigurationError


class Form(NamedTuple):
    """A check of one option: ``accepts`` returns the converted value or raises `ValueError`; messages say ``takes``."""

    accepts: Callable[[Any], Any]
    takes: str


def checked(name: str, value: object, form: Form) -> Any:
    """Return the value as converted by its form; raise `ConfigurationError` that shows the form if it does not fit."""
    try:
        return form.accepts(value)
    except ValueError:  # also the base of msgspec's errors
        raise ConfigurationError(f"{name} takes {form.takes}, not {_shown(value)}") from None


def typed(kind: Any) -> Callable[[Any], Any]:
    """Return a check that a value has a type, by msgspec's rules: a list fits a tuple, and an int fits a float."""
    return lambda value: msgspec.convert(value, kind)


def number(kind: Any, *, zero: bool = False) -> Callable[[Any], Any]:
    """Return a check for finite numbers above 0; ``zero`` allows 0 too, and a ``kind`` with None allows None."""

    def accepts(value: object) -> Any:
        converted = msgspec.convert(value, kind)
        if converted is not None and not (0 < converted < math.inf or (zero and converted == 0)):
            raise ValueError
        return converted

    return accepts


def one_of(*allowed: str) -> Callable[[Any], Any]:
    """Return a check that a value is one of these texts."""

    def accepts(value: object) -> Any:
        if value not in allowed:
            raise ValueError
        return value

    return accepts


def _shown(value: object) -> str:
    """Return a value for an error message. Containers may hold secrets, so only the type of a wrong item is shown."""
    match value:
        case None | str() | int() | float():
            return reprlib.repr(value)
        case type():
            return f"the class {value.__name__}"
        case Mapping():
            pairs = cast("Mapping[Any, Any]", value)
            wrong = (f"{{{key!r}: {_name(each)}}}" for key, each in pairs.items() if _is_wrong(key, each))
            return next(wrong, _a(pairs))
        case list() | tuple() | set() | frozenset():
            items = cast("Iterable[Any]", value)
            return f"{_a(items)} with {next((_a(each) for each in items if _is_wrong(each)), 'texts')}"
        case _:
            return _a(value)


def _is_wrong(*parts: object) -> bool:
    return not all(isinstance(part, str) for part in parts)


def _a(value: object) -> str:
    name = _name(value)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _name(value: object) -> str:
    return type(value).__name__
