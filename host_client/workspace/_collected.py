"""Reads what `_program.collect` wrote in a sandbox. The agent may have forged it, so each part is checked. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from host_client.errors import SandboxError

from . import _program as program

HEAD_BYTES = 32 * 1024 * 1024
"""Maximum length of the line before the contents."""

_MODES = (program.FILE, program.PROGRAM, program.LINK)


class Collected(NamedTuple):
    """The changes of a folder: paths, with mode and content of the new and changed ones."""

    deleted: tuple[bytes, ...]
    changed: tuple[tuple[bytes, int, bytes], ...]
    folders: tuple[bytes, ...]
    left_out: tuple[str, ...]


class CollectedHead(msgspec.Struct, frozen=True, kw_only=True):
    """The line before the contents."""

    deleted: list[str]
    changed: list[tuple[str, int, int]]
    folders: list[str]
    left_out: list[tuple[str, str]]
    left_out_count: int


def read_collected(answer: bytes, base: Mapping[bytes, str], max_files: int, max_bytes: int) -> Collected:
    """Return the changes of a folder that had the files of ``base``; raise `SandboxError` for invalid ones."""
    line, _, contents = answer.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=CollectedHead)
        collected = Collected(
            tuple(_paths(head.deleted)),
            tuple(_cut(head.changed, contents)),
            tuple(_paths(head.folders)),
            tuple(_named(head)),
        )
        _check(collected, base, max_files, max_bytes)
    except ValueError as error:  # also the base of msgspec's errors
        raise SandboxError(f"the sandbox sent changes that are not valid, so none is used: {error}") from None
    return collected


def _paths(texts: Iterable[str]) -> Iterable[bytes]:
    return (text.encode("latin-1") for text in texts)


def _cut(changed: list[tuple[str, int, int]], contents: bytes) -> Iterable[tuple[bytes, int, bytes]]:
    at = 0
    for text, mode, size in changed:
        if not 0 <= size <= len(contents) - at:
            raise ValueError("a content is missing")
        yield text.encode("latin-1"), mode, contents[at : at + size]
        at += size


def _named(head: CollectedHead) -> Iterable[str]:
    for text, reason in head.left_out:
        yield f"{os.fsdecode(text.encode('latin-1'))} {reason[:200]}"
    if head.left_out_count > len(head.left_out):
        yield f"and {head.left_out_count - len(head.left_out):,} more"


def _check(collected: Collected, base: Mapping[bytes, str], max_files: int, max_bytes: int) -> None:
    changed = {path for path, _, _ in collected.changed}
    deleted = set(collected.deleted)
    if len(changed) > max_files or sum(len(content) for _, _, content in collected.changed) > max_bytes:
        raise ValueError("they are more than the limit allows")
    if len(changed) < len(collected.changed) or changed & deleted:
        raise ValueError("a path occurs twice")
    if not deleted <= base.keys():
        raise ValueError("a path is deleted that was never there")
    for path in (*changed, *collected.folders):
        _check_path(path)
    for path, mode, content in collected.changed:
        if mode not in _MODES:
            raise ValueError(f"{os.fsdecode(path)!r} has the mode {mode:o}")
        if mode == program.LINK and (b"\0" in content or program.leads_out(path, content)):
            raise ValueError(f"{os.fsdecode(path)!r} is a link that leads out of the folder")
    files = base.keys() - deleted | changed
    if any(parent in files for path in (*files, *collected.folders) for parent in program.parents(path)):
        raise ValueError("a path leads through a file or a link")


def _check_path(path: bytes) -> None:
    for part in path.split(b"/"):
        if part in (b"", b".", b"..") or part.lower() in (b".git", b"git~1") or b"\0" in part:
            raise ValueError(f"the path {os.fsdecode(path)[:200]!r}")
