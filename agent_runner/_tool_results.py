"""Measure the content of tool results, and cut it to what an event may have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .contract.protocol import to_json

MAX_CONTENT = 256 * 1024
"""Maximum characters of a tool result in its event; the event's ``bytes`` is the size of the whole result."""

_EXIT_CODE = re.compile(r"Exit code (\d+)(?:\n|$)")
_WITHOUT_EXIT_CODE = {"backgroundTaskId", "returnCodeInterpretation"}

# The text in place of an MCP result that is too long for the model.
_SAVED = re.compile(r"Error: result \([^\n]*exceeds maximum allowed tokens\. Output has been saved to ([^\n]+)\.\n")


def bounded(content: object) -> tuple[object, int, bool]:
    """Return a tool result's content cut to `MAX_CONTENT`, the size of the whole in bytes, and whether it was cut."""
    if content is None:
        return "", 0, False
    if isinstance(content, str):
        size = len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
        return content[:MAX_CONTENT], size, len(content) > MAX_CONTENT
    encoded = to_json(content)
    if len(encoded) <= MAX_CONTENT:
        return content, sum(_sizes(content)), False
    return "\n".join(_texts(content))[:MAX_CONTENT], sum(_sizes(content)), True


def exit_code_of(name: str, output: object, error: object) -> int | None:
    """Return the exit code of a command that Bash ran, or None if the CLI does not report it.

    ``output`` is the ``tool_response`` of a PostToolUse hook, ``error`` the text of a PostToolUseFailure hook, which
    alone has the code of a failed command.
    """
    if name != "Bash":
        return None
    if isinstance(error, str):
        found = _EXIT_CODE.match(error)
        return int(found[1]) if found else None
    facts = cast("dict[str, Any]", output) if isinstance(output, dict) else {}
    # The CLI reports no code of a command that still runs, or whose code is no failure, such as 1 of grep.
    ended_well = facts.get("interrupted") is False and not facts.keys() & _WITHOUT_EXIT_CODE
    return 0 if ended_well else None


def whole_size(output: object) -> int:
    """Return the size in bytes of a tool's whole output, or 0 if the CLI does not report it.

    ``output`` is the ``tool_response`` of a PostToolUse hook: the content of an MCP tool's result, or an object with
    facts about a built-in tool's result.
    """
    match output:
        case {"persistedOutputSize": int(size)}:
            return size
        case list():
            return sum(_sizes(cast("list[object]", output)))
        case _:
            return 0


def saved_size(output: object, directory: Path) -> int:
    """Return the size in bytes of a long MCP result that the CLI has saved in its ``directory``; 0 for other output."""
    found = _SAVED.match(output) if isinstance(output, str) else None
    if found is None or not Path(found[1]).is_relative_to(directory) or ".." in Path(found[1]).parts:
        return 0
    try:
        return os.lstat(found[1]).st_size
    except OSError:
        return 0


def _texts(content: object) -> Iterator[str]:
    match content:
        case {"type": "text", "text": str(text)}:
            yield text
        case {"type": str(kind)}:
            yield f"[{kind}]"
        case list():
            for block in cast("list[object]", content):
                yield from _texts(block)
        case _:
            pass


def _sizes(content: object) -> Iterator[int]:
    match content:
        case str():
            yield len(content.encode("utf-8", "replace"))
        case {"type": "text", "text": str(text)}:
            yield len(text.encode("utf-8", "replace"))
        case list():
            for block in cast("list[object]", content):
                yield from _sizes(block)
        case _:
            yield len(to_json(content))
