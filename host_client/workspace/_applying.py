"""Applies a patch to a folder of the host: as a whole, and only to files that are as they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from host_client.errors import ConfigurationError, FolderChangedError, in_words

from . import _program as program
from ._saved import SavedFiles, is_folder


def apply_patch(target: Path, patch: bytes, before: Mapping[bytes, str | None], folders: Iterable[str]) -> None:
    """Apply a patch and make empty folders; raise `FolderChangedError`, and `ConfigurationError` if it is impossible.

    ``before`` are the digests of the files that the patch changes, None for those that must not exist.
    """
    root, inner = os.fsencode(target), [os.fsencode(folder) for folder in folders]
    if not target.is_dir():
        raise ConfigurationError(f"the changes were not applied: {target} is not a directory")
    try:
        changed = [path for path, known in before.items() if not _is_as_before(root, path, known, before)]
        if changed:
            raise FolderChangedError(target, sorted(map(os.fsdecode, changed)))
        _check_writable(target, (*before, *inner))
        _apply(root, patch, SavedFiles(root, before, inner), inner)
    except OSError as error:
        at = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        raise ConfigurationError(
            f"the changes were not applied to {target}, which is as it was: {at}{error.strerror or error}."
            " Remove the cause and apply them again"
        ) from error


def _apply(root: bytes, patch: bytes, saved: SavedFiles, folders: Iterable[bytes]) -> None:
    try:
        if patch:
            with program.repository_beside(root, b"", (), ()) as env:
                program.run(["git", *program.NEUTRAL, "apply", "--whitespace=nowarn", "-"], root, env, patch)
        for folder in folders:
            if all(is_folder(root, each) is not False for each in (*program.parents(folder), folder)):
                os.makedirs(os.path.join(root, folder), exist_ok=True)
        saved.keep_permissions()
    except BaseException as error:
        if failed := saved.restore():
            raise ConfigurationError(
                f"the changes were not applied to {os.fsdecode(root)} ({error}), and {in_words(failed)} there could"
                f" not be put back: the files as they were are in {saved.directory}, copy them from there"
            ) from error
        saved.forget()
        raise
    saved.forget()


def _check_writable(target: Path, paths: Iterable[bytes]) -> None:
    """Raise `ConfigurationError` if a folder that a change is in cannot be written, before anything is changed."""
    root = os.fsencode(target)
    nearest = {next(each for each in _upwards(path) if is_folder(root, each)) for path in paths}
    shut = sorted(
        os.fsdecode(path) or "."
        for path in nearest
        if not os.access(os.path.join(root, path), os.W_OK | os.X_OK, effective_ids=True)
    )
    if shut:
        raise ConfigurationError(
            f"nothing was applied to {target}: you may not write in its folders {in_words(shut)}. Make them writable"
            " and apply the changes again"
        )


def _upwards(path: bytes) -> Iterable[bytes]:
    return (*reversed(tuple(program.parents(path))), b"")


def _is_as_before(root: bytes, path: bytes, known: str | None, before: Mapping[bytes, str | None]) -> bool:
    for parent in program.parents(path):
        if is_folder(root, parent) is False:  # the patch may put a folder in place of a file, which it deletes first
            return known is None and before.get(parent) is not None
    full = os.path.join(root, path)
    if known is None:
        is_emptied = is_folder(root, path) is True and any(each.startswith(path + b"/") for each in before)
        return is_emptied or not os.path.lexists(full)
    try:
        mode = os.lstat(full).st_mode
        kind = program.LINK if stat.S_ISLNK(mode) else program.PROGRAM if mode & 0o100 else program.FILE
        content = program.read(root, program.Entry(path, kind, 0), os.lstat(full).st_size)
    except OSError:
        return False
    return program.digest(kind, content) == known
