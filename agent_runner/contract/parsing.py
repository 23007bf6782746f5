"""Parsers of settings: from the text of a variable or an option to its value. Pure.

Each raises `ValueError` for a bad value, with a message that goes on from the setting's name: "takes a number above 0".
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?")


def printable(value: str) -> str:
    """Return a text of one line."""
    if not value.isprintable():
        raise ValueError("has characters that cannot be printed, such as a line break")
    return value


def one_of(*allowed: str, ignore_case: bool = False) -> Callable[[str], str]:
    """Return the parser of a word that is one of these."""

    def parse(value: str) -> str:
        word = value.lower() if ignore_case else value
        if word not in allowed:
            raise ValueError(f"takes one of {', '.join(allowed)}")
        return word

    return parse


def on_off(value: str) -> bool:
    """Return True for ``on`` and False for ``off``."""
    return one_of("on", "off")(value) == "on"


def true_false(value: str) -> bool:
    """Return the boolean that OpenTelemetry's variables have: ``true``, ``false``, ``1`` or ``0``."""
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("takes true or false")
    return value.lower() in ("true", "1")


def number(value: str) -> float:
    """Return a finite number of 0 or more."""
    return _number(value, lambda found: found >= 0, "takes a number of 0 or more")


def number_above_zero(value: str) -> float:
    """Return a finite number above 0."""
    return _number(value, lambda found: found > 0, "takes a number above 0")


def share(value: str) -> float:
    """Return a number from 0 to 1."""
    return _number(value, lambda found: 0 <= found <= 1, "takes a number from 0 to 1")


def _number(value: str, fits: Callable[[float], bool], message: str) -> float:
    found = float(value) if _NUMBER.fullmatch(value.strip()) else -1.0
    if not fits(found) or found == float("inf"):
        raise ValueError(message)
    return found


def count(value: str) -> int:
    """Return a whole number of 0 or more."""
    return _whole(value, 0, "takes a whole number of 0 or more")


def count_above_zero(value: str) -> int:
    """Return a whole number above 0."""
    return _whole(value, 1, "takes a whole number above 0")


def _whole(value: str, least: int, message: str) -> int:
    digits = value.strip()
    # 18 digits fit 64 bits; int() takes time that grows with the square of their number.
    if not digits.isascii() or not digits.isdigit() or (found := int(digits[:18])) < least:
        raise ValueError(message)
    return found


def port(value: str) -> int:
    """Return a TCP port; 0 stands for any that is free."""
    found = count(value) if value.isdigit() else 65_536
    if found > 65_535:
        raise ValueError("takes a port, 0 to 65535 (0: any that is free)")
    return found


def pairs(value: str, form: str = "name=value") -> dict[str, str]:
    """Return pairs that are separated by commas, as in ``a=1,b=2``; empty items are skipped."""
    found: dict[str, str] = {}
    for item in filter(str.strip, value.split(",")):
        name, separator, rest = item.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"takes {form} pairs, separated by commas")
        found[name.strip()] = rest.strip()
    return found
