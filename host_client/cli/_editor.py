"""Lets a person edit a text in their editor. It can be cancelled, which ends the editor; `click.edit` cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
from pathlib import Path

from agent_runner.contract.directories import temporary_directory

LEAVE_SECONDS = 1.0
"""Seconds that an editor has to restore the terminal before it is killed."""


class EditorError(Exception):
    """The editor could not be started, or failed."""


async def edit(text: str, suffix: str) -> bytes | None:
    """Open a text in the editor; return the saved bytes, or None if nothing was saved. Raise `EditorError`."""
    with temporary_directory("sandspan-edit-") as folder:
        path = _written(folder / f"input{suffix}", text)
        await _run(path)
        return _saved(path)


def _written(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    os.utime(path, (0, 0))  # any save changes this time, however coarse the file system's clock is
    return path


def _saved(path: Path) -> bytes | None:
    return path.read_bytes() if path.stat().st_mtime else None


async def _run(path: Path) -> None:
    editor = _editor()
    try:
        process = await asyncio.create_subprocess_exec(*shlex.split(editor), str(path))
    except (OSError, ValueError) as error:  # ValueError: quotes that do not match
        raise EditorError(f"{editor}: {error}") from error
    try:
        code = await process.wait()
    finally:
        await _end(process)
    if code:
        raise EditorError(f"{editor} ended with exit code {code}")


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _editor() -> str:
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    return named or next(filter(shutil.which, ("sensible-editor", "vim", "nano")), "vi")
