"""Call the host's tools and hooks: an in-process MCP server and SDK hooks whose functions run on the host."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from claude_agent_sdk import HookMatcher, SdkMcpTool, ToolAnnotations, create_sdk_mcp_server
from claude_agent_sdk.types import HookCallback, HookEvent

from ._call_context import current_call_id
from ._config import ConfigError
from ._events import Events
from ._requests import Outcome, PendingRequests, Unanswered
from ._state import ToolCall
from ._translate import Translator
from .contract.callbacks import MAX_INPUT, CallbackDefinitions, HookDefinition, ToolDefinition
from .contract.protocol import (
    CallbackKind,
    CallbackOutcome,
    CallbackRequestData,
    CallbackResolvedData,
    CallbackResponse,
    LogData,
    to_json,
)
from .contract.sanitize import single_line
from .contract.spans import Attributes, Span

HOOK_MARGIN_SECONDS = 5.0
"""Seconds that the CLI waits for a hook longer than this module, which has the better message."""

_WITHOUT_REPLY: dict[CallbackOutcome, str] = {
    "timeout": "the host did not answer within {timeout:g} seconds; whether the call took effect is not known",
    "cancelled": "the turn was interrupted before the host answered; whether the call took effect is not known",
    "no_host": "the host has ended, so its functions cannot be called",
}
_OUTCOMES: dict[Outcome, CallbackOutcome] = {"timeout": "timeout", "cancelled": "cancelled", "deny": "no_host"}
"""Outcomes of callbacks by those of requests without a reply."""


class CallbackError(Exception):
    """A function of the host failed, or was not called or did not answer; the model or the CLI gets the message."""

    def __init__(self, message: str, *, is_of_function: bool = False) -> None:
        super().__init__(message)
        self.is_of_function = is_of_function


class Callbacks:
    """Offers the host's tools and hooks to the agent, and waits for the host's answers."""

    def __init__(self, definitions: CallbackDefinitions, translator: Translator, events: Events) -> None:
        self._definitions = definitions
        self._translator = translator
        self._events = events
        self._requests: PendingRequests[CallbackResponse] = PendingRequests("callback")

    # -- from the host ----------------------------------------------------------------------------

    def answer(self, response: CallbackResponse) -> None:
        """Deliver an answer; one that comes too late is ignored. Raise `RefusedError` for an unknown callback."""
        if not self._requests.is_over(response.callback_id):
            self._requests.answer(response.callback_id, response)

    def cancel_all(self) -> None:
        """End all waits as cancelled, as the turn was interrupted."""
        self._requests.cancel_all()

    def close(self) -> None:
        """End all waits, and refuse all later calls, as the host is gone."""
        self._requests.close()

    # -- for the SDK ------------------------------------------------------------------------------

    def servers(self) -> dict[str, Any]:
        """Return the MCP servers with the host's tools, by their names."""
        tools: defaultdict[str, list[SdkMcpTool[Any]]] = defaultdict(list)
        for tool in self._definitions.tools:
            tools[tool.server].append(self._tool(tool))
        # Without alwaysLoad, the CLI may leave the tools out of a request and let the model search for them.
        return {name: {**create_sdk_mcp_server(name, tools=each), "alwaysLoad": True} for name, each in tools.items()}

    def hooks(self) -> dict[HookEvent, list[HookMatcher]]:
        """Return the host's hooks by their events."""
        matchers: defaultdict[HookEvent, list[HookMatcher]] = defaultdict(list)
        for hook in self._definitions.hooks:
            timeout = hook.timeout + HOOK_MARGIN_SECONDS
            matchers[hook.event].append(HookMatcher(hook.matcher, [self._hook(hook)], timeout, hook.on_failure))
        return dict(matchers)

    def _tool(self, tool: ToolDefinition) -> SdkMcpTool[Any]:
        async def call(arguments: dict[str, Any]) -> dict[str, Any]:
            # The SDK makes the text of an exception the tool's error.
            return await self._call("tool", tool.name, tool.timeout, arguments, current_call_id.get(), tool.server)

        return SdkMcpTool(tool.name, tool.description, tool.input_schema, call, _annotations(tool))

    def _hook(self, hook: HookDefinition) -> HookCallback:
        async def call(hook_input: Any, tool_use_id: str | None, _context: Any) -> Any:
            tool_call = await self._translator.calls.wait_for(tool_use_id) if tool_use_id else None
            begun = self._translator.spans.clock()
            try:
                return await self._call("hook", hook.id, hook.timeout, hook_input, tool_use_id)
            except CallbackError as error:
                # Else a long input, or an answer that is held up, would get a call past the hook.
                if hook.event == "PreToolUse" and not error.is_of_function:
                    return _denial(f"The {hook.event} hook did not decide: {error}")
                remark = f"the {hook.event} hook {hook.id} failed: {error}"
                self._events.emit(LogData(stream="runner", text=remark), self._span_of(tool_use_id))
                raise
            finally:
                self._note_time(hook, tool_call, begun)

        return call

    def _note_time(self, hook: HookDefinition, call: ToolCall | None, begun: int) -> None:
        """Add the time that a hook took to its tool call's, or as an event to the turn's span."""
        now = self._translator.spans.clock()
        match hook.event:
            case "PreToolUse" if call is not None:
                call.hooks_before.add(begun, now)
            case "PostToolUse" | "PostToolUseFailure" if call is not None:
                call.hooks_after.add(begun, now)
            case _:
                if (span := self._translator.turns.current_span) is not None:
                    about: Attributes = {"hook.event": hook.event, "hook.duration_ms": round((now - begun) / 1e6, 3)}
                    span.add_event("hook", begun, about)

    # -- one call ---------------------------------------------------------------------------------

    async def _call(
        self,
        kind: CallbackKind,
        name: str,
        timeout: float,
        given: dict[str, Any],
        tool_use_id: str | None,
        server: str | None = None,
    ) -> dict[str, Any]:
        """Call a function of the host and return its result, or raise `CallbackError`."""
        if (size := len(to_json(given))) > MAX_INPUT:
            raise CallbackError(f"its input has {size:,} bytes as JSON, and at most {MAX_INPUT:,} are sent")
        key, span = self._requests.open(lambda response: None), self._span_of(tool_use_id)
        request = CallbackRequestData(
            callback_id=key,
            kind=kind,
            name=name,
            input=given,
            expires_at=round(time.time() + timeout, 3),
            server=server,
            tool_use_id=tool_use_id,
        )
        self._events.emit(request, span)
        begun = time.monotonic()
        reply: CallbackResponse | Unanswered = Unanswered("cancelled")
        try:
            reply = await self._requests.wait(key, timeout)
        finally:
            # This also runs when the CLI withdraws the call, which cancels this task.
            wait_ms = round((time.monotonic() - begun) * 1000, 3)
            self._events.emit(CallbackResolvedData(callback_id=key, outcome=_outcome_of(reply), wait_ms=wait_ms), span)
        if isinstance(reply, Unanswered):
            raise CallbackError(_WITHOUT_REPLY[_outcome_of(reply)].format(timeout=timeout))
        if reply.error is not None:
            raise CallbackError(reply.error, is_of_function=True)
        return reply.result

    def _span_of(self, tool_use_id: str | None) -> Span | None:
        call = self._translator.calls.by_id.get(tool_use_id or "")
        return call.span if call is not None else self._translator.turns.current_span


def _annotations(tool: ToolDefinition) -> ToolAnnotations | None:
    try:
        return ToolAnnotations.model_validate(tool.annotations) if tool.annotations is not None else None
    except ValueError as error:
        raise ConfigError(
            f"AGENT_CALLBACKS: the annotations of {tool.name} are not MCP's: {single_line(str(error), 300)}"
        ) from None


def _outcome_of(reply: CallbackResponse | Unanswered) -> CallbackOutcome:
    if isinstance(reply, Unanswered):
        return _OUTCOMES[reply.outcome]
    return "returned" if reply.error is None else "failed"


def _denial(reason: str) -> dict[str, Any]:
    """Return the output of a PreToolUse hook that denies its call."""
    decision = {"permissionDecision": "deny", "permissionDecisionReason": reason}
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}
