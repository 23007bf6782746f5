"""Find out which MCP servers an agent lacks, from what the CLI reports of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ._config import ConfigError
from .contract.sanitize import brief
from .contract.spans import Attributes

CONNECTED, PENDING, INVALID = "connected", "pending", "invalid"
"""States of a server: two of the CLI's, and ours for a server that the CLI leaves out without a word."""

POLL_SECONDS = 0.05
"""Seconds between two questions about servers that are connecting."""

STATUS_SECONDS = 5.0
"""Maximum seconds to wait for the reasons of missing servers, without which they are reported too."""

_MEANINGS = {
    CONNECTED: "has connected: its tools are there now",
    PENDING: "has not connected yet, so its tools are missing until then",
    INVALID: "is left out by the CLI, so its tools are missing: it needs a command, or a type and a url",
    "failed": "could not be started or reached, so its tools are missing",
    "needs-auth": "requires a sign-in, so its tools are missing",
}


class Server(NamedTuple):
    """A server's state, and the CLI's words about it, which hold no command line and no credentials of a URL."""

    name: str
    status: str
    error: str = ""

    @property
    def remark(self) -> str:
        """Return a sentence about the server, for a ``log`` event."""
        meaning = _MEANINGS.get(self.status, f"is {self.status}, so its tools are missing")
        return f"the MCP server {self.name} {meaning}{f' ({self.error})' if self.error else ''}"

    @property
    def attributes(self) -> Attributes:
        """Return the attributes of the span event about the server."""
        about: Attributes = {"mcp.server.name": self.name, "mcp.server.status": self.status}
        return {**about, "mcp.server.error": self.error} if self.error else about


class StatusSource(Protocol):
    """The part of `ClaudeSDKClient` that this module needs."""

    async def get_mcp_status(self) -> Any:
        """Return the states of the MCP servers."""


class McpServers:
    """Follows the configured MCP servers of one run. ``configured`` is the SDK's option ``mcp_servers``."""

    def __init__(self, source: StatusSource, configured: Mapping[str, Any]) -> None:
        self._source = source
        # The CLI lists an in-process server only after it has asked for its tools.
        self._external = [name for name, each in configured.items() if each.get("type") != "sdk"]
        self._reported: dict[str, Server] = {}

    async def missing(self, listed: Iterable[Mapping[str, Any]]) -> list[Server]:
        """Return the servers that are not connected; ``listed`` is from the CLI's ``init`` message, without reasons."""
        missing = self._missing(listed)
        if missing:  # the answer to this request has the reasons
            with contextlib.suppress(Exception):
                async with asyncio.timeout(STATUS_SECONDS):
                    missing = await self._ask()
        return missing

    def changed(self, missing: Sequence[Server]) -> list[Server]:
        """Return the servers whose state is not the one of the last call, those that have connected since included."""
        before, self._reported = self._reported, {server.name: server for server in missing}
        changed = [server for server in missing if before.get(server.name) != server]
        return changed + [Server(name, CONNECTED) for name in before if name not in self._reported]

    async def status(self) -> list[dict[str, Any]]:
        """Return name, status, error and names of tools of all servers, without their commands and credentials."""
        reported = (await self._source.get_mcp_status())["mcpServers"]
        return [
            {**_server(each)._asdict(), "tools": [brief(str(tool.get("name"))) for tool in each.get("tools") or ()]}
            for each in reported
        ]

    async def require_all(self) -> None:
        """Wait while a server connects, which the CLI limits; raise `ConfigError` if one is then not connected."""
        missing = await self._ask()
        while any(server.status == PENDING for server in missing):
            await asyncio.sleep(POLL_SECONDS)  # the CLI does not report that a server has connected
            missing = await self._ask()
        if missing:
            remarks = "; ".join(server.remark for server in missing)
            advice = "Check its command or URL in AGENT_MCP_CONFIG, or set AGENT_REQUIRE_MCP=off to run without it"
            raise ConfigError(f"{remarks}. {advice}")

    async def _ask(self) -> list[Server]:
        return self._missing((await self._source.get_mcp_status())["mcpServers"])

    def _missing(self, listed: Iterable[Mapping[str, Any]]) -> list[Server]:
        reported = {str(each.get("name")): each for each in listed}
        absent = [{"name": name, "status": INVALID} for name in self._external if name not in reported]
        servers = map(_server, (*reported.values(), *absent))
        return [server for server in servers if server.status != CONNECTED]


def _server(reported: Mapping[str, Any]) -> Server:
    name, status, error = (brief(str(reported.get(key) or "")) for key in ("name", "status", "error"))
    return Server(name, status, error)
