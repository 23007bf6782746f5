"""The rules by which files of a host's folder stay at home: git's, or a short list outside of git."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from . import _program as program

LEFT_AT_HOME = (*program.CACHES, ".env")
"""Patterns of what stays at home of a folder that is in no repository, besides what a ``.gitignore`` in it names."""


def ignored_on_host(root: bytes, folder: bytes) -> set[bytes]:
    """Return the paths in a folder that stay at home; see `_program.Ignored`."""
    return program.ignored_by(root, folder, lambda each: _repository(root, each))


@contextlib.contextmanager
def _repository(root: bytes, folder: bytes) -> Generator[dict[str, str]]:
    try:
        is_own = is_in_repository(Path(os.fsdecode(os.path.join(root, folder))))
    except ChildProcessError:
        if not folder:
            raise
        is_own = False  # a submodule without its repository has files like others
    if is_own:
        yield own_environment()
    else:
        with program.repository_beside(root, folder, map(str.encode, LEFT_AT_HOME), ()) as env:
            yield env


def is_in_repository(path: Path) -> bool:
    """Return whether a folder is in a repository, which does not ignore the folder as a whole. Raise `OSError`."""
    if not any(os.path.lexists(each / ".git") for each in (path, *path.parents)):
        return False
    try:
        program.run(["git", *program.NEUTRAL, "check-ignore", "-q", "."], os.fsencode(path), own_environment())
    except ChildProcessError as error:
        if error.errno == 1:  # it is not ignored
            return True
        raise
    return False


def patterns_of(path: Path) -> list[bytes]:
    """Return the patterns of ignored paths that hold in a folder, other than those of its own ``.gitignore`` files."""
    if not is_in_repository(path):
        return [pattern.encode() for pattern in LEFT_AT_HOME]
    patterns = [pattern.encode() for pattern in program.CACHES]
    root, env = os.fsencode(path), own_environment()
    git = ["git", *program.NEUTRAL]
    top = Path(os.fsdecode(program.run([*git, "rev-parse", "--show-toplevel"], root, env).rstrip(b"\n")))
    info = path / os.fsdecode(program.run([*git, "rev-parse", "--git-path", "info/exclude"], root, env).rstrip(b"\n"))
    for file in (_excludes_file(root, env), info):
        patterns += _from(file, path.relative_to(top))
    for parent in reversed(path.parents):
        if parent.is_relative_to(top):
            patterns += _from(parent / ".gitignore", path.relative_to(parent))
    return patterns


def _excludes_file(root: bytes, env: dict[str, str]) -> Path:
    """Return the file with the user's own patterns, which need not exist."""
    default = Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config", "git", "ignore")
    try:
        named = program.run(["git", "config", "--path", "core.excludesFile"], root, env).rstrip(b"\n")
    except ChildProcessError:  # it is not set
        return default
    return Path(os.fsdecode(named))


def _from(file: Path, below: Path) -> Iterator[bytes]:
    """Yield the patterns of a file that hold in the folder ``below`` the file's own, in the form that holds there."""
    prefix = os.fsencode(below) + b"/" if below.parts else b""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        sign, body = (line[:1], line[1:]) if line.startswith(b"!") else (b"", line)
        if b"/" not in body.rstrip().rstrip(b"/") or body.startswith(b"**/"):
            yield line
        elif body.lstrip(b"/").startswith(prefix):
            yield sign + b"/" + body.lstrip(b"/")[len(prefix) :]


def own_environment() -> dict[str, str]:
    """Return this process's environment without variables that lead git to another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
