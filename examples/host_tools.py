"""Let the agent search a database that only this program can reach, and refuse commands that remove files.

python host_tools.py orders.sqlite "What has Ada ordered?"
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from typing import Annotated, Any

from host_client import AgentOptions, HookMatcher, host_tool, run_agent


@host_tool(read_only=True, timeout=10)
def search_orders(customer: Annotated[str, "Name of the customer"], limit: int = 10) -> list[dict[str, Any]]:
    """Return the latest orders of a customer, with their prices."""
    database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
    found = database.execute(
        "SELECT id, item, price FROM orders WHERE customer = ? ORDER BY id DESC LIMIT ?", (customer, min(limit, 100))
    )
    return [dict(zip(("id", "item", "price"), row, strict=True)) for row in found]


async def check_command(hook_input: dict[str, Any], tool_use_id: str | None, context: Any) -> dict[str, Any]:
    """Deny commands that remove files."""
    if "rm " not in hook_input["tool_input"]["command"]:
        return {}
    denial = {"permissionDecision": "deny", "permissionDecisionReason": "Do not remove files."}
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **denial}}


async def main() -> int:
    result = await run_agent(
        sys.argv[2],
        AgentOptions(allowed_tools=("mcp__host__search_orders", "Bash")),
        host_tools=[search_orders],
        hooks={"PreToolUse": [HookMatcher(matcher="Bash", hooks=[check_command], on_failure="block")]},
    )
    print(result.error_message if result.is_error else result.text)
    return int(result.is_error)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
