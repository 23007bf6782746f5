"""Make a tool call's span the current one of OpenTelemetry in the handlers of in-process MCP servers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ._state import ToolCall
from .contract.trace_context import TraceContext

_TOOL_USE_ID = "claudecode/toolUseId"
"""The key of a request's ``_meta`` by which the CLI names the tool call."""

_PROPAGATOR = TraceContextTextMapPropagator()

current_call_id: ContextVar[str | None] = ContextVar("current_call_id", default=None)
"""The id of the tool call that a handler of an in-process server carries out; None if it is not known."""

FindCall = Callable[[str], Awaitable[ToolCall | None]]
"""Returns a tool call by its id."""


def in_call_context(servers: Mapping[str, dict[str, Any]], find_call: FindCall) -> dict[str, Any]:
    """Return MCP servers whose handlers have the call's span as the current one; the given ones stay as they are.

    Servers of mcp 1 have no middleware, and are returned unchanged.
    """
    return {name: _with_middleware(server, CallContext(find_call)) for name, server in servers.items()}


def _with_middleware(server: dict[str, Any], middleware: CallContext) -> dict[str, Any]:
    instance: Any = copy.copy(server.get("instance"))
    if not hasattr(instance, "middleware"):
        return server
    # First, so that the spans of the mcp package itself are children of the call's span.
    instance.middleware = [middleware, *instance.middleware]
    return {**server, "instance": instance}


class CallContext:
    """Middleware of an MCP server (``mcp.server.context.ServerMiddleware``)."""

    def __init__(self, find_call: FindCall) -> None:
        self._find_call = find_call

    async def __call__(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Process a request in the context of its tool call, if it is part of one."""
        meta = dict(request.meta or {})
        tool_id = meta.get(_TOOL_USE_ID)
        call = await self._find_call(tool_id) if isinstance(tool_id, str) else None
        if call is None:
            return await call_next(request)
        # The CLI's own context names a span that is not part of the trace.
        meta["traceparent"] = TraceContext(call.span.trace_id, call.span.span_id).traceparent
        meta["tracestate"] = call.span.tracestate
        current_call_id.set(tool_id)  # in the context of this request's task alone
        token = context.attach(_PROPAGATOR.extract(meta))
        try:
            return await call_next(dataclasses.replace(request, meta=meta))
        finally:
            context.detach(token)
