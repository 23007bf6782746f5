"""Put together what a caller gives to a session: options, the reply to requests, and functions of this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from agent_runner.contract.callbacks import HookEventName
from host_client.errors import ConfigurationError

from ._claude_options import ClaudeOptions, parts_of
from ._host_functions import HostFunctions
from ._in_process_servers import tools_of
from ._policy import Approver
from .hooks import HookMatcher, HooksByEvent
from .host_tools import AnyTool
from .options import AgentOptions, ApprovalPolicy

AnyOptions = AgentOptions | ClaudeOptions
"""Options of a session: `AgentOptions`, or the SDK's ``ClaudeAgentOptions``."""


class CallerParts(NamedTuple):
    """The parts of a session that come from its caller."""

    options: AgentOptions
    approvals: ApprovalPolicy | Approver
    functions: HostFunctions
    cwd: str | None = None


@asynccontextmanager
async def caller_parts(
    options: AnyOptions | None,
    further: Mapping[str, Any],
    approvals: ApprovalPolicy | Approver,
    host_tools: Sequence[AnyTool],
    hooks: HooksByEvent | None,
) -> AsyncGenerator[CallerParts]:
    """Return the parts of a session; the in-process MCP servers of ``ClaudeAgentOptions`` run during the block.

    Raise `ConfigurationError`.
    """
    if options is None or isinstance(options, AgentOptions):
        yield CallerParts(replace(options or AgentOptions(), **further), approvals, HostFunctions(host_tools, hooks))
        return
    given = parts_of(options, **further)
    if given.approver is not None and callable(approvals):
        raise ConfigurationError("approvals and can_use_tool exclude each other: give one function that decides")
    async with tools_of(given.servers) as tools:
        functions = HostFunctions((*host_tools, *tools), _joined(given.hooks, hooks or {}), given.on_stderr)
        yield CallerParts(given.options, given.approver or approvals, functions, given.cwd)


def _joined(one: HooksByEvent, other: HooksByEvent) -> HooksByEvent:
    joined: dict[HookEventName, list[HookMatcher | Any]] = {}
    for hooks in (one, other):
        for event, matchers in hooks.items():
            joined.setdefault(event, []).extend(matchers)
    return joined
