"""Parse the text of a variable or an option into its value. Pure.

Each parser raises `ValueError` for a bad value; the message continues a sentence that begins with the setting's name:
"takes a number above 0".
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?")


def printable(value: str) -> str:
    """Return the text; refuse one with line breaks or control characters."""
    if not value.isprintable():
        raise ValueError("has characters that cannot be printed, such as a line break")
    return value


def one_of(*allowed: str, ignore_case: bool = False) -> Callable[[str], str]:
    """Return a parser that accepts these words only."""

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
    """Return the boolean for ``true``, ``false``, ``1`` or ``0``, as OpenTelemetry's variables write it."""
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("takes true or false")
    return value.lower() in ("true", "1")


def number(value: str) -> float:
    """Return the finite number, which must be 0 or more."""
    return _number(value, lambda parsed: parsed >= 0, "takes a number of 0 or more")


def number_above_zero(value: str) -> float:
    """Return the finite number, which must be above 0."""
    return _number(value, lambda parsed: parsed > 0, "takes a number above 0")


def share(value: str) -> float:
    """Return the number, which must be from 0 to 1."""
    return _number(value, lambda parsed: 0 <= parsed <= 1, "takes a number from 0 to 1")


def _number(value: str, fits: Callable[[float], bool], message: str) -> float:
    parsed = float(value) if _NUMBER.fullmatch(value.strip()) else -1.0
    if not fits(parsed) or parsed == float("inf"):
        raise ValueError(message)
    return parsed


def count(value: str) -> int:
    """Return the whole number, which must be 0 or more."""
    return _whole(value, 0, "takes a whole number of 0 or more")


def count_above_zero(value: str) -> int:
    """Return the whole number, which must be above 0."""
    return _whole(value, 1, "takes a whole number above 0")


def _whole(value: str, least: int, message: str) -> int:
    digits = value.strip()
    # 18 digits fit 64 bits. The time of int() grows with the square of the number of digits.
    if not digits.isascii() or not digits.isdigit() or (parsed := int(digits[:18])) < least:
        raise ValueError(message)
    return parsed


def port(value: str) -> int:
    """Return the TCP port; 0 stands for any free port."""
    parsed = count(value) if value.isdigit() else 65_536
    if parsed > 65_535:
        raise ValueError("takes a port from 0 to 65535 (0: any free port)")
    return parsed


def pairs(value: str, form: str = "name=value") -> dict[str, str]:
    """Return the pairs of a list such as ``a=1,b=2``; empty items are skipped."""
    parsed: dict[str, str] = {}
    for item in filter(str.strip, value.split(",")):
        name, separator, rest = item.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"takes {form} pairs, separated by commas")
        parsed[name.strip()] = rest.strip()
    return parsed
