"""Applies a patch to a folder of the host: as a whole, and only to files that are as they were."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from host_client.errors import ConfigurationError, FolderChangedError

from . import _program as program
from ._collected import parents


def apply_patch(target: Path, patch: bytes, before: Mapping[bytes, str | None], folders: Iterable[str]) -> None:
    """Apply a patch and make empty folders; raise `FolderChangedError`, and `ConfigurationError` if git fails.

    ``before`` are the digests of the files that the patch changes, None for those that must not exist.
    """
    root = os.fsencode(target)
    if not target.is_dir():
        raise ConfigurationError(f"the changes were not applied: {target} is not a directory")
    changed = [path for path, known in before.items() if not _is_as_before(root, path, known, before)]
    if changed:
        raise FolderChangedError(target, sorted(map(os.fsdecode, changed)))
    with tempfile.TemporaryDirectory(prefix="sandspan-saved-") as directory:
        saved = _Saved(root, before, directory)
        try:
            if patch:
                with program.repository_beside(root, b"", (), ()) as env:
                    program.run(["git", *program.NEUTRAL, "apply", "--whitespace=nowarn", "-"], root, env, patch)
            for folder in map(os.fsencode, folders):
                if all(_is_folder(root, each) is not False for each in (*parents(folder), folder)):
                    os.makedirs(os.path.join(root, folder), exist_ok=True)
        except BaseException as error:
            saved.restore()
            if not isinstance(error, OSError):
                raise
            raise ConfigurationError(f"the changes were not applied to {target}: {error.strerror}") from error


def _is_folder(root: bytes, path: bytes) -> bool | None:
    """Return whether a path is a directory and no link; None if nothing is there."""
    try:
        return stat.S_ISDIR(os.lstat(os.path.join(root, path)).st_mode)
    except FileNotFoundError:
        return None


def _is_as_before(root: bytes, path: bytes, known: str | None, before: Mapping[bytes, str | None]) -> bool:
    for parent in parents(path):
        if _is_folder(root, parent) is False:  # the patch may put a folder in place of a file, which it deletes first
            return known is None and before.get(parent) is not None
    full = os.path.join(root, path)
    if known is None:
        is_emptied = _is_folder(root, path) is True and any(each.startswith(path + b"/") for each in before)
        return is_emptied or not os.path.lexists(full)
    try:
        mode = os.lstat(full).st_mode
        kind = program.LINK if stat.S_ISLNK(mode) else program.PROGRAM if mode & 0o100 else program.FILE
        content = program.read(root, program.Entry(path, kind, 0), os.lstat(full).st_size)
    except OSError:
        return False
    return program.digest(kind, content) == known


class _Saved:
    """Copies of the files that a patch changes, to put back if it cannot be applied as a whole."""

    def __init__(self, root: bytes, paths: Iterable[bytes], directory: str) -> None:
        self._root = root
        self._copies: dict[bytes, bytes | None] = {}
        self._missing = {parent for path in paths for parent in parents(path) if _is_folder(root, parent) is None}
        for number, path in enumerate(paths):
            full, copy = os.path.join(root, path), os.path.join(os.fsencode(directory), b"%d" % number)
            self._copies[path] = copy if os.path.lexists(full) and _is_folder(root, path) is False else None
            if self._copies[path]:
                shutil.copy2(full, copy, follow_symlinks=False)

    def restore(self) -> None:
        """Put every file back, and remove new files and the folders that were made for them."""
        for path in self._copies:
            if _is_folder(self._root, path) is False:
                os.unlink(os.path.join(self._root, path))
        for path in sorted(self._missing, key=len, reverse=True):
            if _is_folder(self._root, path):
                os.rmdir(os.path.join(self._root, path))
        for path, copy in self._copies.items():
            full = os.path.join(self._root, path)
            if copy is not None:
                os.makedirs(os.path.dirname(full), exist_ok=True)
                shutil.copy2(copy, full, follow_symlinks=False)
