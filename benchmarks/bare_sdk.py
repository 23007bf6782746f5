"""Run the baseline: the same prompt with the Claude Agent SDK alone, without hooks, partial messages and telemetry.

With the argument ``hook`` it has the hook by which the runner learns how long a call ran, and which does nothing here.
It prints a line at the CLI's first message, at each tool call and at the result, which is the minimum that shows that
a program has read them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    ResultMessage,
    SystemMessage,
    ToolUseBlock,
)


async def do_nothing(*_: Any) -> Any:
    return {}


async def main() -> None:
    hook = HookMatcher(hooks=[do_nothing])
    options = ClaudeAgentOptions(
        cwd=os.environ["AGENT_CWD"],
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=[],
        strict_mcp_config=True,
        hooks={"PostToolUse": [hook], "PostToolUseFailure": [hook]} if "hook" in sys.argv else None,
    )
    async with ClaudeSDKClient(options) as client:
        await client.query(os.environ["AGENT_PROMPT"])
        async for message in client.receive_response():
            if isinstance(message, SystemMessage) and message.subtype == "init":
                say("start")
            elif isinstance(message, AssistantMessage):
                for block in message.content:
                    if isinstance(block, ToolUseBlock):
                        say("tool_use")
            elif isinstance(message, ResultMessage):
                say("result")


def say(what: str) -> None:
    sys.stdout.write(f'{{"type":"{what}"}}\n')
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
