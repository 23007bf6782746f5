"""Hands over the changes of a run's folder at its end: puts them on the folder, or writes them as a patch."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from host_client.client.session import Session
from host_client.errors import SandspanError
from host_client.workspace import LEFT_AT_HOME, Changes, SentFolder, Workspace

from ._render import visible

_SHOWN = 5
"""Number of left out files and of empty folders that are shown."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """The folder of a run, whether its changes are put on it at the end, and the file for them as a patch."""

    cwd: Workspace
    apply: bool = False
    patch: Path | None = None


async def hand_over(handover: Handover, session: Session, console: Console, *, is_error: bool) -> bool:
    """Hand over the changes of a run, and say so; return False if something that was asked for was not done.

    The changes of a run that failed are not put on the folder. Changes that would be lost with the sandbox are written
    to a temporary file.
    """
    try:
        changes = await session.changes()
    except SandspanError as error:
        unknown = f"the changes of {handover.cwd.path} are not known: {visible(str(error))}"
        console.print(Text(unknown, style="yellow"), soft_wrap=True)
        return not (handover.apply or handover.patch)
    _describe(changes, console)
    if handover.patch is not None and not _write(handover.patch, changes.patch, console):
        return False
    if changes.in_place:
        if handover.apply:
            said = f"nothing to apply: the agent worked in {changes.folder} itself"
            console.print(Text(said, style="dim"), soft_wrap=True)
        return True
    if not changes:
        return True
    is_applied = handover.apply and not is_error and await _apply(changes, console)
    if not is_applied and changes.patch:
        hint = "to do it later" if handover.apply else "--apply does it at the end of a run, or now"
        _keep(changes, handover.patch, hint, console)
    return is_applied or not handover.apply


def sent_line(sent: SentFolder) -> str:
    """Return a line about a folder that was sent to a sandbox."""
    stays = "what .gitignore names" if sent.is_in_git else f"{', '.join(LEFT_AT_HOME)} and what .gitignore names"
    return f"sent {sent.path}: {sent.files:,} files, {sent.size:,} bytes; {stays} stayed here"


def _describe(changes: Changes, console: Console) -> None:
    states = Counter(file.state for file in changes.files)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    number = len(changes.files)
    said = f"{number} {'file' if number == 1 else 'files'} changed: {counts}" if number else "no file changed"
    console.print(Text(said, style="dim"))
    if changes.folders:
        more = f" and {len(changes.folders) - _SHOWN} more" if len(changes.folders) > _SHOWN else ""
        named = ", ".join(map(visible, sorted(changes.folders)[:_SHOWN]))
        console.print(Text(f"new empty folders: {named}{more}", style="dim"), soft_wrap=True)
    for text in changes.left_out[:_SHOWN]:
        console.print(Text(f"left out: {visible(text)}"[:200], style="yellow"), soft_wrap=True)
    if len(changes.left_out) > _SHOWN:
        console.print(Text(f"left out: {len(changes.left_out) - _SHOWN} more", style="yellow"))


async def _apply(changes: Changes, console: Console) -> bool:
    try:
        await changes.apply()
    except SandspanError as error:
        console.print(Text(visible(str(error)), style="bold red"), soft_wrap=True)
        return False
    console.print(Text(f"applied to {changes.folder}", style="dim"), soft_wrap=True)
    return True


def _write(path: Path, patch: bytes, console: Console) -> bool:
    try:
        path.write_bytes(patch)
    except OSError as error:
        console.print(Text(f"the patch was not written to {path}: {error.strerror}", style="bold red"), soft_wrap=True)
        return False
    console.print(Text(f"patch: {path}", style="dim"), soft_wrap=True)
    return True


def _keep(changes: Changes, path: Path | None, hint: str, console: Console) -> None:
    """Tell how to apply the patch, which is written to a temporary file unless it is in ``path`` already."""
    if path is None:
        descriptor, name = tempfile.mkstemp(prefix="sandspan-", suffix=".patch")
        os.close(descriptor)
        path = Path(name)
        if not _write(path, changes.patch, console):
            return
    command = visible(changes.apply_command(path))
    console.print(Text(f"not applied; {hint}: {command}"), soft_wrap=True)
