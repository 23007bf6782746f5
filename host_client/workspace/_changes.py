"""The changes of a folder as a patch, and their application to a folder on the host."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ._applying import apply_patch


@dataclass(frozen=True)
class FileChange:
    """A file that was ``added``, ``modified``, ``deleted`` or ``renamed`` from ``old_path``."""

    path: str
    state: str
    old_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes of a folder since its session began; false if there are none."""

    folder: Path
    """The folder that the session was opened with."""
    patch: bytes = field(repr=False)
    """The changes in the format of ``git diff --binary``, with paths relative to the folder."""
    files: tuple[FileChange, ...]
    folders: tuple[str, ...] = ()
    """New empty folders, which a patch cannot have."""
    left_out: tuple[str, ...] = ()
    """Files that are not in the patch, each with the reason, such as a link that leads out of the folder."""
    in_place: bool = False
    """Whether the agent worked in the folder itself, so that the changes are in it already."""
    before: Mapping[bytes, str | None] = field(repr=False)
    """The digest that each file in the patch had at the beginning; None for a new one."""

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def apply_command(self, patch_file: Path) -> str:
        """Return the command line that applies a file with the patch to the folder, without the checks of `apply`."""
        repositories = (each for each in (self.folder, *self.folder.parents) if os.path.lexists(each / ".git"))
        top = next(repositories, self.folder)  # in a folder of a repository, git takes the paths from its top
        inner = self.folder.relative_to(top)
        where = (f"--directory={inner}",) if inner.parts else ()
        git = ("git", "-C", str(top), "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn")
        return shlex.join((*git, *where, str(patch_file.resolve())))

    async def apply(self, folder: Path | str | None = None) -> None:
        """Apply the changes to a folder, by default the session's own; do nothing if they are in it already.

        Raise `FolderChangedError` if a file in the patch is not as it was when the session began, and
        `ConfigurationError` if the changes cannot be written. The folder is as it was then; if a file could not be put
        back, the error names the directory that has it.
        """
        if folder is None and self.in_place:
            return
        target = Path(folder) if folder is not None else self.folder
        await asyncio.to_thread(apply_patch, target.resolve(), self.patch, self.before, self.folders)
