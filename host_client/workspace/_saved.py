"""Keeps copies of the files that a patch changes, and puts them back if it cannot be applied as a whole."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable

from ._program import parents


def is_folder(root: bytes, path: bytes) -> bool | None:
    """Return whether a path is a directory and no link; None if nothing is there."""
    try:
        return stat.S_ISDIR(os.lstat(os.path.join(root, path)).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


class SavedFiles:
    """Copies of the files at the paths that a patch changes, in a temporary directory that `forget` removes."""

    def __init__(self, root: bytes, paths: Iterable[bytes], folders: Iterable[bytes]) -> None:
        self._root, self._paths = root, tuple(paths)
        made = {parent for path in (*self._paths, *folders) for parent in parents(path)} | {*folders}
        self._missing = sorted((path for path in made if not is_folder(root, path)), key=len, reverse=True)
        """Folders that the changes make, the innermost first."""
        self._saved: set[bytes] = set()
        self.directory = tempfile.mkdtemp(prefix="sandspan-saved-")
        try:
            for path in self._paths:
                if is_folder(root, path) is False:
                    os.makedirs(os.path.dirname(self._copy(path)), exist_ok=True)
                    shutil.copy2(os.path.join(root, path), self._copy(path), follow_symlinks=False)
                    self._saved.add(path)
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Remove the copies."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def keep_permissions(self) -> None:
        """Give changed files the permissions that they had; whether they are executable is a part of the patch."""
        for path in self._saved:
            full = os.path.join(self._root, path)
            old = os.lstat(self._copy(path)).st_mode
            if not stat.S_ISREG(old) or is_folder(self._root, path) is not False or os.path.islink(full):
                continue
            new, wanted = os.lstat(full).st_mode, old & 0o777
            if new & 0o100 and not old & 0o100:
                wanted |= (old & 0o444) >> 2
            elif not new & 0o100:
                wanted &= ~0o111
            if wanted != stat.S_IMODE(new):
                os.chmod(full, wanted)

    def restore(self) -> list[str]:
        """Put every file back, and remove what was made. Return the paths where that failed; others are as before."""
        failed = [path for path in self._paths if path not in self._saved and not self._remove(path)]
        for path in self._missing:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self._root, path))
        failed += [path for path in self._paths if path in self._saved and not self._put_back(path)]
        return [os.fsdecode(path) for path in failed]

    def _copy(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.directory), path)

    def _remove(self, path: bytes) -> bool:
        try:
            if is_folder(self._root, path) is False:
                os.unlink(os.path.join(self._root, path))
        except OSError:
            return False
        return True

    def _put_back(self, path: bytes) -> bool:
        full, copy = os.path.join(self._root, path), self._copy(path)
        try:
            if not _are_equal(full, copy):
                folder = os.path.dirname(full)
                os.makedirs(folder, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder, prefix=b".sandspan-") as beside:
                    shutil.copy2(copy, os.path.join(beside, b"file"), follow_symlinks=False)
                    os.replace(os.path.join(beside, b"file"), full)
        except OSError:
            return False
        return True


def _are_equal(path: bytes, other: bytes) -> bool:
    try:
        if os.lstat(path).st_mode != os.lstat(other).st_mode:
            return False
        if os.path.islink(path):
            return os.readlink(path) == os.readlink(other)
        return filecmp.cmp(path, other, shallow=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
