"""Permission modes of the Claude Agent SDK, and the parser of tool lists. Pure."""

from __future__ import annotations

from typing import Literal, get_args

PermissionMode = Literal["default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"]
PERMISSION_MODES: tuple[str, ...] = get_args(PermissionMode)


def tool_names(value: str) -> tuple[str, ...]:
    """Split a list of tools and rules at the commas outside parentheses, as in ``Read,Bash(git log:*)``."""
    names, depth, current = list[str](), 0, ""
    for character in value:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            names.append(current.strip())
            current = ""
        else:
            current += character
    names.append(current.strip())
    return tuple(name for name in names if name)
