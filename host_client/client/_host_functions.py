"""The tools and hooks of one session, and the document in which its runner gets them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent_runner.contract.callbacks import MAX_DOCUMENT, CallbackDefinitions, read_callbacks
from host_client.errors import ConfigurationError

from .hooks import HooksByEvent, HostHook, host_hooks
from .host_tools import AnyTool, HostTool, as_host_tool
from .options import AgentOptions


class HostFunctions:
    """The functions that the agent of a session can call on the host."""

    def __init__(
        self,
        tools: Sequence[AnyTool] = (),
        hooks: HooksByEvent | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> None:
        """Take functions and tools, and matchers by event; raise `ConfigurationError` that names a wrong one.

        ``on_stderr`` is called with each line that the agent's CLI writes to stderr.
        """
        tool_list = [as_host_tool(each) for each in tools]
        hook_list = host_hooks(hooks or {})
        try:
            self.definitions = CallbackDefinitions(
                tools=tuple(each.definition for each in tool_list), hooks=tuple(each.definition for each in hook_list)
            )
            self.document = self._document()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"host_tools and hooks: {error}") from None
        self.tools: dict[tuple[str, str], HostTool] = {(each.server, each.name): each for each in tool_list}
        """Tools by their server's and their own name."""
        self.hooks: dict[str, HostHook] = {each.definition.id: each for each in hook_list}
        self.on_stderr = on_stderr

    def _document(self) -> str | None:
        """Return the definitions as JSON, None if there are none."""
        if not self.definitions.kinds:
            return None
        text = msgspec.json.encode(self.definitions)
        if len(text) > MAX_DOCUMENT:
            raise ValueError(
                f"their definitions have {len(text):,} bytes as JSON, at most {MAX_DOCUMENT:,} can be sent: shorten the"
                " descriptions and schemas, or give fewer tools"
            )
        read_callbacks(text)
        return text.decode()

    def check(self, options: AgentOptions) -> None:
        """Raise `ConfigurationError` if an MCP server of the options has the name of a tools' server."""
        for server, _ in self.tools:
            if server in options.mcp_servers:
                raise ConfigurationError(
                    f"mcp_servers: the name {server!r} is that of the server of host_tools; give this server another"
                )
