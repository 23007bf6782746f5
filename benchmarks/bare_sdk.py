"""Run the baseline: the same prompt with the Claude Agent SDK alone, without hooks, partial messages and telemetry.

It prints a line at the CLI's first message, at each tool call and at the result, which is the minimum that shows that
a program has read them.
"""

from __future__ import annotations

import asyncio
import os
import sys

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ResultMessage,
    SystemMessage,
    ToolUseBlock,
)


async def main() -> None:
    options = ClaudeAgentOptions(
        cwd=os.environ["AGENT_CWD"],
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=[],
        strict_mcp_config=True,
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
