"""`query` and `ClaudeSDKClient` for an agent in a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Unpack

import claude_agent_sdk
from claude_agent_sdk import ClaudeAgentOptions, Message

from host_client.client.session import Session

from ._transport import SandboxTransport, SessionArguments


async def query(
    *,
    prompt: str | AsyncIterable[dict[str, Any]],
    options: ClaudeAgentOptions | None = None,
    on_session: Callable[[Session], None] | None = None,
    **arguments: Unpack[SessionArguments],
) -> AsyncIterator[Message]:
    """Run prompts as the SDK's `query` does, in a sandbox.

    ``on_session`` is called with the session, whose `last_changes` are known when the messages have ended.
    """
    options = options or ClaudeAgentOptions()
    transport = SandboxTransport(options, on_session, **arguments)
    async for message in claude_agent_sdk.query(prompt=prompt, options=options, transport=transport):
        yield message


class ClaudeSDKClient(claude_agent_sdk.ClaudeSDKClient):
    """The SDK's client for an agent in a sandbox; ``arguments`` are `SessionArguments`."""

    def __init__(self, options: ClaudeAgentOptions | None = None, **arguments: Unpack[SessionArguments]) -> None:
        options = options or ClaudeAgentOptions()
        self._sandbox_transport = SandboxTransport(options, **arguments)
        super().__init__(options, self._sandbox_transport)

    @property
    def session(self) -> Session:
        """Return the session, which has the trace, the cost and further methods; there is one after `connect`."""
        return self._sandbox_transport.session
