"""Make empty environments with the built wheel and the distributions that a role requires.

Installing a role from an index would fetch 365 MB for each test. Instead the wheel is installed into a new environment,
and its direct and indirect requirements are linked into it; other distributions are missing there. Each file is linked
by itself, as distributions with a namespace package share a folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Wheel:
    """The built wheel and its metadata."""

    path: Path

    @property
    def names(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return archive.namelist()

    @property
    def metadata(self) -> Message:
        with zipfile.ZipFile(self.path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return Parser().parsestr(archive.read(name).decode())

    @property
    def requirements(self) -> list[Requirement]:
        return [Requirement(line) for line in self.metadata.get_all("Requires-Dist", [])]


def build_wheel(folder: Path) -> Wheel:
    """Build the wheel with this environment's build backend, without a package index."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    (path,) = folder.glob("*.whl")
    return Wheel(path)


def closure(wheel: Wheel, *extras: str) -> dict[str, Distribution]:
    """Return by canonical name all distributions that the wheel requires with some of its extras."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = list(_wanted(wheel.requirements, {"", *extras}))
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        wanted = {"", *requirement.extras}
        if name == "sandspan":
            todo += _wanted(wheel.requirements, wanted - {""})
            continue
        new = {extra for extra in wanted if (name, extra) not in seen}
        seen.update((name, extra) for extra in new)
        if new:
            found.setdefault(name, distribution(requirement.name))
            todo += _wanted([Requirement(line) for line in found[name].requires or ()], new)
    return found


def _wanted(requirements: list[Requirement], extras: set[str]) -> Iterator[Requirement]:
    for requirement in requirements:
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


@dataclass(frozen=True)
class Environment:
    """A Python environment, and functions that run programs in it."""

    folder: Path

    def run(self, command: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in an empty folder with a minimal set of variables."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        return subprocess.run(
            [str(self.folder / "bin" / command), *args],
            cwd=empty,
            env={"PATH": "/usr/bin:/bin", "HOME": str(empty), "LANG": "C.UTF-8", **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def python(self, code: str) -> str:
        """Run Python code with warnings as errors; fail if it fails, and return its stdout."""
        done = self.run("python", "-W", "error", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def can_import(self, name: str) -> bool:
        code = f"import importlib.util; print(importlib.util.find_spec({name!r}) is not None)"
        return self.python(code) == "True"


def new_environment(folder: Path, wheel: Wheel, distributions: dict[str, Distribution]) -> Environment:
    """Make an environment without pip, install the wheel, and link the required distributions into it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    install = ["install", "--quiet", "--no-index", "--no-deps", str(wheel.path)]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=60)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    for each in distributions.values():
        _link(each, packages)
    return Environment(folder)


def _link(each: Distribution, packages: Path) -> None:
    for file in each.files or ():
        # Scripts lie outside of site-packages and start the other environment's Python.
        if ".." in file.parts:
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.symlink(str(each.locate_file(file)), target)
