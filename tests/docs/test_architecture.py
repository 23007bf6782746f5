"""docs/ARCHITECTURE.md names only places that exist in the code."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.tables import ROOT

PLACES = sorted(set(re.findall(r"`([\w./]+\.(?:py|js):[\w.]+)`", (ROOT / "docs/ARCHITECTURE.md").read_text())))


def test_every_step_of_a_walk_names_a_place() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    steps = re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)
    assert len(steps) > 30
    assert [step for step in steps if re.match(r"`[\w./]+:[\w.]+` ", step) is None] == []


@pytest.mark.parametrize("place", PLACES)
def test_a_named_place_is_in_the_code(place: str) -> None:
    path, _, name = place.partition(":")
    source = (ROOT / path).read_text()
    declared = of_python(source) if path.endswith(".py") else of_javascript(source)
    assert name in declared, f"{path} declares no {name}: correct docs/ARCHITECTURE.md"


def of_python(source: str) -> set[str]:
    """Return the names of a Python module's functions, classes and methods (``Class.method``)."""
    found: set[str] = set()
    for each in ast.parse(source).body:
        match each:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                functions = (inner for inner in body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef))
                found |= {name, *(f"{name}.{inner.name}" for inner in functions)}
            case _:
                pass
    return found


def of_javascript(source: str) -> set[str]:
    """Return the same names of a JavaScript module of the page, found by its indentation."""
    found: set[str] = set()
    holder = ""
    for line in source.split("\n"):
        if top := re.match(r"(?:export )?(?:(class)|(?:async )?function\*?) (\w+)", line):
            holder = top[2] if top[1] else ""
            found.add(top[2])
        elif holder and (method := re.match(r"  (?:async |static )*(\w+)\(.*\) \{$", line)):
            found.add(f"{holder}.{method[1]}")
    return found
