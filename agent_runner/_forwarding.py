"""Forward the CLI's messages to the host as they are, for a host that reads them with the SDK's own classes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, Transport
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from ._events import Events
from ._turns import Turns
from .contract.protocol import CliMessageData

_NOT_FORWARDED = frozenset({"control_request", "control_response", "control_cancel_request", "transcript_mirror"})


class ForwardingTransport(Transport):
    """The SDK's transport to the CLI; each message of the CLI also becomes a ``message`` event.

    The answer to the SDK's first control request is forwarded too: it describes the CLI. With ``hide_partial``, partial
    messages go to the host alone.
    """

    def __init__(self, options: ClaudeAgentOptions, events: Events, turns: Turns, *, hide_partial: bool) -> None:
        # The SDK sets this for a transport that it makes itself.
        own = replace(options, permission_prompt_tool_name="stdio")
        self._cli = SubprocessCLITransport(_no_prompts(), own)
        self._events = events
        self._turns = turns
        self._hide_partial = hide_partial
        self._is_described = False

    async def connect(self) -> None:
        """Start the CLI."""
        await self._cli.connect()

    async def write(self, data: str) -> None:
        """Write to the CLI's stdin."""
        await self._cli.write(data)

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the CLI's messages."""
        async for message in self._cli.read_messages():
            kind = message.get("type")
            if kind == "control_response" and not self._is_described:
                self._is_described = True
                self._forward(message)
            elif kind not in _NOT_FORWARDED:
                self._forward(message)
            if not (kind == "stream_event" and self._hide_partial):
                yield message

    def _forward(self, message: dict[str, Any]) -> None:
        self._events.emit(CliMessageData(message=message), self._turns.current_span)

    async def close(self) -> None:
        """End the CLI."""
        await self._cli.close()

    def is_ready(self) -> bool:
        """Return whether the CLI can be written to."""
        return self._cli.is_ready()

    async def end_input(self) -> None:
        """Close the CLI's stdin."""
        await self._cli.end_input()


async def _no_prompts() -> AsyncIterator[dict[str, Any]]:
    """Yield nothing: prompts are written later."""
    return
    yield {}
