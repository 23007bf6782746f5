"""Findings of the `doctor` commands, and the check that the runner's and the host's command share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import msgspec

from . import __version__

MIN_PYTHON = (3, 11)
SYMBOLS = {True: "✓", False: "✗", None: "–"}  # noqa: RUF001 - the dash is meant


class Finding(msgspec.Struct, frozen=True):
    """The outcome of a check: ``ok`` is None for a check that was skipped, ``mend`` says how to repair a failure."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{SYMBOLS[self.ok]} {self.name}: {self.detail}"
        return f"{line}. {self.mend}" if self.mend and self.ok is False else line


Check = Callable[[], Finding]


def check_python() -> Finding:
    """Check that Python is new enough."""
    text = f"{sys.version.split()[0]} at {sys.executable}, sandspan {__version__}"
    needed = ".".join(map(str, MIN_PYTHON))
    return Finding("Python", sys.version_info >= MIN_PYTHON, text, f"Install Python {needed} or later")


def examine(check: Check) -> Finding:
    """Return a check's finding; a check that raises gives a failed finding, so that the other checks still run."""
    try:
        return check()
    except Exception as error:  # a check may raise any exception
        return Finding(_name(check), False, f"{type(error).__name__}: {error}")


def _name(check: Check) -> str:
    function = check.func if isinstance(check, partial) else check
    return getattr(function, "__name__", "check").removeprefix("check_")
