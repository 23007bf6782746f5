"""A module is private if only its own package imports it, and public otherwise; a class name occurs only once.

The allowed imports between packages are checked by import-linter (`make lint`).
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from .environments import REPOSITORY

PACKAGES = ("agent_runner", "host_client")
IMPORTERS = (*PACKAGES, "dashboards")
"""Folders whose imports are checked; tests and benchmarks may import private modules."""


def modules(folder: str) -> dict[str, Path]:
    """Return the files of all modules below a folder by dotted name; an ``__init__`` has its package's name."""
    found: dict[str, Path] = {}
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        parts = file.relative_to(REPOSITORY).with_suffix("").parts
        if "project" not in parts:  # the demo's program is no part of the packages
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def package_of(module: str, file: Path) -> str:
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


def imported(module: str, file: Path) -> Iterator[str]:
    """Yield the absolute name of each module or member that a file imports at any depth."""
    package = package_of(module, file).split(".")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{full}.{name.name}" for name in node.names)


def importing_packages() -> dict[str, set[str]]:
    """Return for each module of the two packages the packages whose files import it."""
    ours = {name: file for folder in PACKAGES for name, file in modules(folder).items()}
    found: dict[str, set[str]] = defaultdict(set)
    for folder in IMPORTERS:
        for module, file in modules(folder).items():
            for name in imported(module, file):
                target = name if name in ours else name.rpartition(".")[0]
                found[target].add(package_of(module, file))
    return found


def is_within(package: str, other: str) -> bool:
    return package == other or package.startswith(f"{other}.")


def test_a_private_module_is_imported_within_its_own_package_alone() -> None:
    users = importing_packages()
    private = [name for folder in PACKAGES for name in modules(folder) if name.rpartition(".")[2].startswith("_")]
    assert len(private) > 50
    reached = {
        name: outside
        for name in private
        if "__" not in name
        and (outside := {user for user in users[name] if not is_within(user, name.rpartition(".")[0])})
    }
    assert reached == {}


def test_a_module_that_only_its_own_package_imports_is_private() -> None:
    users = importing_packages()
    public = [
        name
        for folder in PACKAGES
        for name, file in modules(folder).items()
        if file.name not in ("__init__.py", "__main__.py") and not name.rpartition(".")[2].startswith("_")
    ]
    hidden = [name for name in public if users[name] <= {name.rpartition(".")[0]}]
    assert hidden == []


def test_a_class_name_occurs_once_in_the_project() -> None:
    names = Counter(
        node.name
        for folder in PACKAGES
        for file in modules(folder).values()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert len(names) > 200
    assert [name for name, count in names.items() if count > 1] == []
