"""Run a prompt whose agent calls a function in this process, and print a line at each call, as `bare_sdk` does.

The argument is ``bare`` (the tool is that of an in-process server of the bare SDK), ``tool`` (that of a session of the
host), ``hook`` or ``no_hook`` (a session with and without a ``PreToolUse`` hook that does nothing).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ToolUseBlock,
    create_sdk_mcp_server,
    tool,
)

from host_client import AgentOptions, HookMatcher, LocalSandbox, events, host_tool, open_session

from .bare_sdk import do_nothing, say


@tool("echo", "Return the text.", {"text": str})
async def echo(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": arguments["text"]}]}


server = create_sdk_mcp_server("host", tools=[echo])


async def bare() -> None:
    options = ClaudeAgentOptions(
        cwd=os.environ["AGENT_CWD"],
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=[],
        strict_mcp_config=True,
        mcp_servers={"host": server},
        allowed_tools=["mcp__host"],
    )
    async with ClaudeSDKClient(options) as client:
        await client.query(os.environ["AGENT_PROMPT"])
        async for message in client.receive_response():
            if isinstance(message, AssistantMessage) and isinstance(message.content[0], ToolUseBlock):
                say("tool_use")


async def ours(what: str) -> None:
    @host_tool(name="echo", description="Return the text.")
    async def echo(text: str) -> str:
        return text

    async with open_session(
        os.environ["AGENT_PROMPT"],
        AgentOptions(allowed_tools=("mcp__host", "Bash")),
        sandbox=LocalSandbox(work=Path(os.environ["AGENT_CWD"])),
        host_tools=[echo] if what == "tool" else [],
        hooks={"PreToolUse": [HookMatcher(hooks=[do_nothing])]} if what == "hook" else None,
    ) as session:
        await session.finish()
        async for event in session:
            if isinstance(event, events.ToolUse):
                say("tool_use")


if __name__ == "__main__":
    asyncio.run(bare() if sys.argv[1] == "bare" else ours(sys.argv[1]))
