"""Find out who denied a tool call, from what the CLI says about it. Pure.

If a rule or a permission mode denied a call, the CLI sends a message with the kind of reason. If a hook did, if a file
must not be read or written, or if the tool is not offered to the model, only the text of the call's result says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .contract.protocol import DeniedBy

_BY_REASON: dict[object, DeniedBy] = {
    "rule": "rule",
    "subcommandResults": "rule",
    "mode": "mode",
    "classifier": "mode",
    "hook": "hook",
}

_NO_TOOL = "<tool_use_error>Error: No such tool available: "
_FILE_RULE = re.compile(
    "<tool_use_error>File is (in a directory that is denied by|covered by a Read deny rule in) your permission settings"
)
_AGENT_RULE = re.compile(r"Agent type '[^']*' has been denied by permission rule '")


def denier_of_reason(kind: object) -> DeniedBy:
    """Return who denied a call for a reason of this kind (``decision_reason_type`` of ``permission_denied``)."""
    return _BY_REASON.get(kind, "cli")


def denier_in_result(name: str, text: str, *, ran: bool, disallowed: Collection[str]) -> DeniedBy | None:
    """Return who denied a call with a failed result, or None if it was not denied.

    ``ran``: the tool has run, so the text is its own. ``disallowed`` is the setting of that name.
    """
    if name == "Agent" and _AGENT_RULE.match(text):
        return "rule"  # the tool itself applies rules about types of agents
    if ran:
        return None
    if text.startswith(f"PreToolUse:{name} hook error: "):
        return "hook"
    if _FILE_RULE.match(text):
        return "rule"
    if not text.startswith(_NO_TOOL):
        return None
    # Of an MCP tool that is disallowed, the CLI says the same as of one that does not exist.
    if _is_disallowed(name, disallowed):
        return "configuration"
    # A settings file has disallowed it, or the CLI does not offer it in this mode of operation.
    return "cli" if text.startswith(f"{_NO_TOOL}{name}. {name} is disabled for this session") else None


def _is_disallowed(name: str, disallowed: Collection[str]) -> bool:
    """Return whether a setting names a tool, or the MCP server that it belongs to: ``mcp__calc``, ``mcp__calc__*``."""
    return any(name == each or name.startswith(f"{each.removesuffix('__*')}__") for each in disallowed)
