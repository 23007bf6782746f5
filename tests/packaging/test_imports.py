"""Which way imports point: the runner never reaches for the host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .environments import REPOSITORY


def imported(file: Path) -> Iterator[str]:
    """Yield the absolute names of all that a file imports, wherever in it."""
    package = file.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])])


def test_no_file_of_the_runner_imports_the_host() -> None:
    files = sorted((REPOSITORY / "agent_runner").rglob("*.py"))
    assert len(files) > 10
    reaching = [file.name for file in files if any(name.split(".")[0] == "host_client" for name in imported(file))]
    assert reaching == []


def test_only_one_package_of_the_host_imports_e2b() -> None:
    files = sorted((REPOSITORY / "host_client").rglob("*.py"))
    importers = [file for file in files if any(name.split(".")[0] == "e2b" for name in imported(file))]
    assert {file.parent for file in importers} == {REPOSITORY / "host_client" / "sandbox" / "e2b"}
