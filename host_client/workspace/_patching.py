"""Makes a patch of the changes of a folder, by two commits of a temporary repository."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from host_client.errors import SandboxError

from . import _program as program
from ._baseline import Baseline
from ._changes import Changes, FileChange
from ._collected import Collected, read_collected
from ._rules import own_environment

_STATES = {"A": "added", "M": "modified", "T": "modified", "D": "deleted", "R": "renamed"}
_DIFF = ("git", "diff-tree", "-r", "-M", "--no-ext-diff", "--no-textconv")


def changes_since(base: Baseline, answer: bytes, max_files: int, max_bytes: int, *, in_place: bool) -> Changes:
    """Make a patch of what `_program.collect` wrote, which is not trusted. Raise `SandboxError` if it is not valid."""
    collected = read_collected(answer, base.digests, max_files, max_bytes)
    collected = _without_ignored(base, collected, in_place=in_place)
    try:
        patch, names = _compared(base, collected) if collected.deleted or collected.changed else (b"", b"")
    except OSError as error:
        raise SandboxError(f"the changes cannot be made into a patch: {error.strerror}") from error
    touched = (*collected.deleted, *(path for path, _, _ in collected.changed))
    return Changes(
        folder=Path(os.fsdecode(base.root)),
        patch=patch,
        files=tuple(_files(names.split(b"\0"))),
        folders=tuple(map(os.fsdecode, collected.folders)),
        left_out=collected.left_out,
        in_place=in_place,
        before={path: base.digests.get(path) for path in touched},
    )


def _without_ignored(base: Baseline, collected: Collected, *, in_place: bool) -> Collected:
    """Leave out new files that git ignores in the folder: not every rule from above it can go into the sandbox."""
    new = [path for path, _, _ in collected.changed if path not in base.digests]
    try:
        ignored = program.ignored_of(base.root, new, own_environment()) if base.is_in_git else set[bytes]()
    except OSError:  # the folder is not as it was, which matters only to those who apply the changes
        return collected
    changed = tuple(each for each in collected.changed if each[0] not in ignored)
    named = () if in_place else (f"{os.fsdecode(path)} is ignored in the folder" for path in sorted(ignored))
    return collected._replace(changed=changed, left_out=(*collected.left_out, *named))


def _compared(base: Baseline, collected: Collected) -> tuple[bytes, bytes]:
    """Return the patch, and the states and names of its files."""
    touched = (*collected.deleted, *(path for path, _, _ in collected.changed if path in base.digests))
    before = (_file_command(path, *base.file(path)) for path in touched)
    after = (_file_command(path, mode, content) for path, mode, content in collected.changed)
    with tempfile.TemporaryDirectory(prefix="sandspan-patch-") as directory:
        env, where = {**program.bare_environment(), "GIT_DIR": directory}, os.fsencode(directory)
        program.run(["git", "init", "-q", "--bare", "--template="], where, env)
        _import(env, (_commit("before"), *before, _commit("after"), *after))
        commits = ("refs/before", "refs/after")
        patch = program.run([*_DIFF, "-p", "--binary", "--full-index", "--no-color", *commits], where, env)
        return patch, program.run([*_DIFF, "-z", "--name-status", *commits], where, env)


def _import(env: dict[str, str], commands: tuple[bytes, ...]) -> None:
    program.run(
        ["git", "-c", "core.compression=0", "fast-import", "--quiet", "--depth=0"], b"/", env, b"".join(commands)
    )


def _commit(name: str) -> bytes:
    return f"commit refs/{name}\ncommitter sandspan <> 0 +0000\ndata 0\n".encode()


def _file_command(path: bytes, mode: int, content: bytes) -> bytes:
    return b"M %o inline %s\ndata %d\n%s\n" % (mode, _quoted(path), len(content), content)


def _quoted(path: bytes) -> bytes:
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._- "
    return b'"' + b"".join(b"%c" % byte if byte in plain else b"\\%03o" % byte for byte in path) + b'"'


def _files(fields: list[bytes]) -> Iterator[FileChange]:
    """Read the output of ``git diff-tree -z --name-status``."""
    rest = iter(fields)
    for state in rest:
        if state:
            old = os.fsdecode(next(rest))
            new = os.fsdecode(next(rest)) if state.startswith(b"R") else None
            yield FileChange(new or old, _STATES[state[:1].decode()], old if new else None)
