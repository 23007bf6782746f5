"""Offer the tools of in-process MCP servers to the agent: the servers stay in this process."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from host_client.errors import ConfigurationError

from .host_tools import Call, HostTool

START_SECONDS = 30.0
"""Maximum seconds until a server has listed its tools."""

END_SECONDS = 5.0
"""Maximum seconds to wait for the end of a server, as the SDK does."""

SERVER_TOOL_SECONDS = 86_400.0
"""Maximum seconds of a call: the SDK sets no limit, and the CLI's is longer."""


@asynccontextmanager
async def tools_of(servers: Mapping[str, Any]) -> AsyncGenerator[list[HostTool]]:
    """Run the servers, which are instances of ``mcp.server.Server`` by name, and return their tools."""
    running = [_RunningServer(name, instance) for name, instance in servers.items()]
    try:
        yield [tool for server in running for tool in await server.tools()]
    finally:
        for server in running:
            await server.close()


class _RunningServer:
    """One server with a client, in a task of its own, as the streams of mcp belong to the task that opens them."""

    def __init__(self, name: str, instance: Any) -> None:
        self._name = name
        self._instance = instance
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    async def tools(self) -> list[HostTool]:
        """Return the server's tools; raise `ConfigurationError` if it cannot be started."""
        try:
            async with asyncio.timeout(START_SECONDS):
                client = await asyncio.shield(self._client)
                listed = await _listed_by(client)
        except Exception as error:
            reason = "it does not answer" if isinstance(error, TimeoutError) else repr(error)
            raise ConfigurationError(f"the MCP server {self._name!r} cannot be used: {reason}") from error
        return [self._tool(client, each.model_dump(mode="json", by_alias=True, exclude_none=True)) for each in listed]

    def _tool(self, client: Any, listed: dict[str, Any]) -> HostTool:
        name = listed["name"]

        async def call(arguments: dict[str, Any]) -> dict[str, Any]:
            result = await client.call_tool(name, arguments)
            whole = result.model_dump(mode="json", by_alias=True, exclude_none=True)
            return {"content": whole.get("content", []), "is_error": bool(whole.get("isError"))}

        def prepare(arguments: Mapping[str, Any]) -> Call:
            return partial(call, dict(arguments))

        return HostTool(
            name=name,
            description=listed.get("description") or name,
            input_schema=listed.get("inputSchema") or {"type": "object", "properties": {}},
            function=call,
            prepare=prepare,
            timeout=SERVER_TOOL_SECONDS,
            annotations=listed.get("annotations"),
            server=self._name,
        )

    async def _serve(self) -> None:
        # Only a caller that has made such a server needs the package.
        session = importlib.import_module("mcp.client.session").ClientSession
        streams = importlib.import_module("mcp.shared.memory").create_client_server_memory_streams
        try:
            async with streams() as (of_client, of_server):
                serving = asyncio.create_task(
                    self._instance.run(*of_server, self._instance.create_initialization_options())
                )
                serving.add_done_callback(self._server_ended)
                try:
                    async with session(*of_client) as client:
                        await client.initialize()
                        self._client.set_result(client)
                        await self._closing.wait()
                finally:
                    serving.cancel()
                    await asyncio.wait((serving,), timeout=END_SECONDS)
        except Exception as error:
            if self._client.done():
                raise
            self._client.set_exception(error)

    def _server_ended(self, serving: asyncio.Task[Any]) -> None:
        """End the client's waits, as nobody will answer."""
        error = None if serving.cancelled() else serving.exception()
        if not self._client.done():
            self._client.set_exception(error or RuntimeError("it has ended"))
        self._task.cancel()

    async def close(self) -> None:
        """End the server."""
        self._closing.set()
        await asyncio.wait((self._task,), timeout=END_SECONDS)
        self._task.cancel()
        if self._client.done() and not self._client.cancelled():
            self._client.exception()  # nobody may have waited for it


async def _listed_by(client: Any) -> list[Any]:
    """Return all tools that a server lists, page by page."""
    page = await client.list_tools()
    listed = list(page.tools)
    while cursor := getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None):
        page = await client.list_tools(cursor=cursor)
        listed += page.tools
    return listed
