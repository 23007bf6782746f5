"""The methods of a session that change or ask its running agent, under the names of the SDK's client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from agent_runner.contract import protocol as p
from agent_runner.contract.tools import PERMISSION_MODES, PermissionMode
from host_client.errors import ConfigurationError


class SessionControls(ABC):
    """Base of `Session`. Each method waits until the agent's CLI has done what it is asked, also during a turn.

    The answer comes with the session's events, so another task must read them meanwhile if they are many.
    Raise `CommandRefusedError` if the CLI refuses, `NoAnswerError` if there is no answer within 70 seconds, and
    `SessionClosedError` if the session ends before.
    """

    @abstractmethod
    async def request(self, command: p.AnyControl) -> Any:
        """Send a command of the contract and return its answer, None if it has none."""

    async def set_model(self, model: str | None = None) -> None:
        """Use another model from the next model request on; None stands for the CLI's default."""
        await self.request(p.SetModel(model=model))

    async def set_permission_mode(self, mode: PermissionMode) -> None:
        """Change the permission mode. ``bypassPermissions`` is refused in a session that did not begin with it."""
        if mode not in PERMISSION_MODES:
            raise ConfigurationError(f"mode takes one of {', '.join(PERMISSION_MODES)}, not {mode!r}")
        await self.request(p.SetPermissionMode(mode=mode))

    async def stop_task(self, task_id: str) -> None:
        """Stop a command or subagent, by the ``task_id`` of its ``task`` or ``subagent_start`` event.

        After a subagent in the background, the CLI tells the model so in a turn of its own.
        """
        await self.request(p.StopTask(task_id=task_id))

    async def rewind_files(self, user_message_id: str) -> None:
        """Restore the files that the agent's tools changed to their state before a prompt.

        ``user_message_id`` is from the ``turn_start`` event of that prompt. The session needs the option
        ``enable_file_checkpointing``; its conversation stays as it is.
        """
        await self.request(p.RewindFiles(user_message_id=user_message_id))

    async def reconnect_mcp_server(self, server_name: str) -> None:
        """Connect again to an MCP server that has failed."""
        await self.request(p.ReconnectMcpServer(server_name=server_name))

    async def toggle_mcp_server(self, server_name: str, enabled: bool) -> None:
        """Disconnect an MCP server and remove its tools, or connect to it again."""
        await self.request(p.ToggleMcpServer(server_name=server_name, enabled=enabled))

    async def get_mcp_status(self) -> list[dict[str, Any]]:
        """Return ``name``, ``status``, ``error`` and ``tools`` of each MCP server."""
        return await self.request(p.GetMcpStatus())

    async def get_context_usage(self) -> dict[str, Any]:
        """Return the use of the model's context, in tokens: ``totalTokens``, ``maxTokens``, ``categories`` and more."""
        return await self.request(p.GetContextUsage())
