"""Findings of the doctor commands, and the checks that both commands make. Pure but for what a check looks at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import msgspec

from . import __version__

MIN_PYTHON = (3, 11)
SYMBOLS = {True: "✓", False: "✗", None: "–"}  # noqa: RUF001 - the dash is meant


class Finding(msgspec.Struct, frozen=True):
    """What a check found: ``ok`` is None for what was not asked for, ``mend`` says what to do about a failure."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{SYMBOLS[self.ok]} {self.name}: {self.detail}"
        return f"{line}. {self.mend}" if self.mend and self.ok is False else line


Check = Callable[[], Finding]


def check_python() -> Finding:
    """The interpreter is new enough."""
    text = f"{sys.version.split()[0]} at {sys.executable}, sandspan {__version__}"
    wanted = ".".join(map(str, MIN_PYTHON))
    return Finding("Python", sys.version_info >= MIN_PYTHON, text, f"Install Python {wanted} or later")


def examine(check: Check) -> Finding:
    """Run a check; one that breaks is a finding too, and the others still get their turn."""
    try:
        return check()
    except Exception as error:  # whatever a check breaks on
        return Finding(_name(check), False, f"{type(error).__name__}: {error}")


def _name(check: Check) -> str:
    function = check.func if isinstance(check, partial) else check
    return getattr(function, "__name__", "check").removeprefix("check_")
