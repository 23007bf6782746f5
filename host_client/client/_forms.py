"""What an option or argument takes: a value of a wrong type is refused where it is given, with the right form."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from host_client.errors import ConfigurationError


class Form(NamedTuple):
    """``accepts`` returns the value as it is kept, and raises `ValueError` for any other; ``takes`` says the form."""

    accepts: Callable[[Any], Any]
    takes: str


def checked(name: str, value: object, form: Form) -> Any:
    """Return a value as its form keeps it; raise `ConfigurationError` with the form where it is another."""
    try:
        return form.accepts(value)
    except ValueError:  # msgspec's errors are of this kind, too
        raise ConfigurationError(f"{name} takes {form.takes}, not {_shown(value)}") from None


def typed(kind: Any) -> Callable[[Any], Any]:
    """Accept what msgspec takes for a type: also a list for a tuple, and an int for a float."""
    return lambda value: msgspec.convert(value, kind)


def number(kind: Any, *, zero: bool = False) -> Callable[[Any], Any]:
    """Accept finite numbers above 0, or 0 too; and None, where it is of the type."""

    def accepts(value: object) -> Any:
        found = msgspec.convert(value, kind)
        if found is not None and not (0 < found < math.inf or (zero and found == 0)):
            raise ValueError
        return found

    return accepts


def one_of(*allowed: str) -> Callable[[Any], Any]:
    """Accept some texts only."""

    def accepts(value: object) -> Any:
        if value not in allowed:
            raise ValueError
        return value

    return accepts


def _shown(value: object) -> str:
    """Return what was given; of a container, which may hold secrets, only the type of what is no text in it."""
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
