"""Follow the tool calls of a conversation, from the model's message with the call to its result."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._agents import Agents
from ._denials import denier_in_result, denier_of_reason
from ._events import Events
from ._state import MAX_INPUT, AgentState, ToolCall
from ._tool_results import bounded, exit_code_of, saved_size, whole_size
from ._turns import Turns
from .contract import genai
from .contract.classify import classify
from .contract.protocol import DeniedBy, ErrorType, ToolResultData, ToolUseData, to_json
from .contract.sanitize import ToolSanitizer
from .contract.spans import Span, Spans

CALL_SECONDS = 0.25
"""Maximum seconds to wait for the message with a tool call."""


@dataclass(slots=True)
class OpenCalls:
    """The tool calls that have not ended."""

    events: Events
    spans: Spans
    turns: Turns
    agents: Agents
    sanitize: ToolSanitizer | None
    """Sanitizer of arguments and results in spans; None leaves them out."""
    disallowed: Collection[str]
    """The configured tools and rules that are refused."""
    directory: Path
    """The CLI's own directory, in which it saves long results."""
    by_id: dict[str, ToolCall] = field(default_factory=dict[str, ToolCall])
    on_begin: Callable[[str, ToolCall], None] = lambda call_id, call: None
    """Called when a call's span was opened."""
    _awaited: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    _denials: dict[str, DeniedBy] = field(default_factory=dict[str, DeniedBy])
    """Who denied the calls whose results have not come, by the calls' ids."""

    # -- beginnings -------------------------------------------------------------------------------

    def begin(self, call_id: str, name: str, tool_input: dict[str, Any], parent_id: str | None = None) -> ToolCall:
        """Return a tool call; open its span and emit its event if it is new.

        The SDK may ask for its permission before the message with the call has been read.
        """
        if (call := self.by_id.get(call_id)) is not None:
            return call
        attributes = genai.execute_tool(call_id, name, len(to_json(tool_input)))
        label = f"execute_tool {attributes['gen_ai.tool.name']}"
        span = self.spans.open_child(label, self._parent_span(parent_id), attributes)
        genai.set_arguments(span, tool_input, self.sanitize)
        call = self.by_id[call_id] = ToolCall(span, name, tool_input)
        self.on_begin(call_id, call)
        if awaited := self._awaited.pop(call_id, None):
            awaited.set()
        self.events.emit(
            ToolUseData(id=call_id, name=name, input=tool_input, parent_tool_use_id=parent_id), span, opens=True
        )
        return call

    def _parent_span(self, parent_id: str | None) -> Span:
        agent = self.agent(parent_id) or self.agents.main
        # A tool call outside of a turn begins one, so that it has a parent in the trace.
        return agent.span if agent is not None else self.turns.begin_own().span

    def agent(self, parent_id: str | None) -> AgentState | None:
        """Return the subagent that a call started, or for None the main agent; None if there is none."""
        if parent_id is None:
            return self.agents.main
        call = self.by_id.get(parent_id)
        return self.agents.subagent(parent_id, call) if call is not None else None

    async def wait_for(self, call_id: str) -> ToolCall | None:
        """Return a call; wait for its message for at most `CALL_SECONDS`, as its tool may be asked for before it."""
        if call_id not in self.by_id:
            awaited = self._awaited.setdefault(call_id, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALL_SECONDS):
                    await awaited.wait()
        return self.by_id.get(call_id)

    def caller_of(self, agent_id: str | None) -> str | None:
        """Return the id of the tool call that started a subagent, or None."""
        return next((key for key, call in self.by_id.items() if agent_id and call.task == agent_id), None)

    # -- results ----------------------------------------------------------------------------------

    async def executed(self, data: Any, call_id: str | None, _context: Any) -> Any:
        """Take the CLI's report on a tool that ran (the SDK's callback for PostToolUse and PostToolUseFailure)."""
        call, duration = self.by_id.get(call_id or ""), data.get("duration_ms")
        if call is not None and isinstance(duration, int | float):
            output: object = data.get("tool_response")
            tool_input: dict[str, Any] = data.get("tool_input") or {}
            call.execution_ms = float(duration)  # without waits
            call.exit_code = exit_code_of(data.get("tool_name", ""), output, data.get("error"))
            call.output_size = whole_size(output) or saved_size(output, self.directory)
            call.begun = call.begun or self.spans.clock() - int(duration * 1e6)
            differs = tool_input != call.input and len(to_json(tool_input)) <= MAX_INPUT
            call.executed_input = tool_input if differs else None
        return {}

    def denied(self, data: dict[str, Any]) -> None:
        """Take the CLI's message that a rule or a mode denied a call, ``permission_denied``."""
        self._denials[str(data.get("tool_use_id"))] = denier_of_reason(data.get("decision_reason_type"))

    def take_result(self, call_id: str, content: object, is_error: bool, now: int) -> ToolCall | None:
        """Report a call's result, and put it on the call's span; return the call, or None if this is not its first."""
        call = self.by_id.get(call_id)
        if call is None or call.result_seen:
            return None
        call.result_seen = True
        kept, size, truncated = bounded(content)
        if call.output_size > size:
            # The CLI wrote the output to a file and gave the model only its beginning.
            size, truncated = call.output_size, True
        self._set_result(call, kept, size, is_error)
        elapsed_ms = (now - call.span.start) / 1e6 - call.wait_ms
        duration = call.execution_ms if call.execution_ms is not None else max(0.0, elapsed_ms)
        denied_by = self._denied_by(call_id, call, content) if is_error else None
        error_type = self._fail(call_id, call, denied_by) if is_error else None
        self.events.emit(
            ToolResultData(
                tool_use_id=call_id,
                content=kept,
                is_error=is_error,
                duration_ms=round(duration, 3),
                bytes=size,
                truncated=truncated,
                error_type=error_type,
                executed_input=call.executed_input,
                exit_code=call.exit_code,
                denied_by=denied_by,
            ),
            call.span,
        )
        return call

    def _set_result(self, call: ToolCall, kept: object, size: int, is_error: bool) -> None:
        genai.set_tool_outcome(call.span, size, is_error, call.execution_ms, call.wait_ms)
        if call.begun is not None:
            queue_ms = (call.begun - call.span.start) / 1e6 - call.hooks_before.ms
            genai.set_delays(call.span, queue_ms, call.hooks_before.ms + call.hooks_after.ms)
        genai.set_tool_output(call.span, call.name, kept, self.sanitize)
        genai.set_exit_code(call.span, call.exit_code)
        if call.executed_input is not None:
            genai.set_executed(call.span, call.executed_input, self.sanitize)

    def _denied_by(self, call_id: str, call: ToolCall, content: object) -> DeniedBy | None:
        reported = self._denials.pop(call_id, None)
        if call.refusal is not None:
            return call.denied_by
        text, ran = content if isinstance(content, str) else "", call.execution_ms is not None
        return reported or denier_in_result(call.name, text, ran=ran, disallowed=self.disallowed)

    def _fail(self, call_id: str, call: ToolCall, denied_by: DeniedBy | None) -> ErrorType:
        """Mark the span of a call with an error as its result; return the error type."""
        agent = self.agents.subagents.get(call_id)
        if agent is not None and agent.failure is not None:  # of a subagent's model request
            call.span.fail(agent.failure.error_type, f"{call.name}: the subagent's model request failed")
            return agent.failure.error_type
        interrupted = self.turns.current is not None and self.turns.current.interrupted
        how = call.refusal or ("deny" if denied_by else "cancelled" if interrupted else "failed")
        error_type = classify(tool=how).error_type
        call.span.fail(error_type, f"{call.name}: {f'denied ({denied_by})' if denied_by else how}")
        genai.set_denied_by(call.span, denied_by)
        return error_type

    # -- ends -------------------------------------------------------------------------------------

    def close(self, call_id: str, *, end: int | None = None) -> None:
        """End a call's span and the subagent that it started."""
        if (call := self.by_id.pop(call_id, None)) is not None:
            self.agents.end_subagent(call_id, call, end)
            self.spans.close(call.span, end=end)

    def close_all(self, error_type: ErrorType, *, but: Collection[str]) -> None:
        """End the calls without a result as failed, except those that are the tasks ``but`` or belong to them."""
        kept = self.of_tasks(but)
        for call_id, call in reversed(list(self.by_id.items())):  # a subagent's calls before the subagent
            if call not in kept:
                call.span.fail(error_type, "ended without a result")
                self.close(call_id)

    def of_tasks(self, tasks: Collection[str]) -> list[ToolCall]:
        """Return the calls that are these tasks, and at any depth the calls of their subagents."""
        found: list[ToolCall] = []
        subagents: set[str | None] = set()  # ids of their spans
        for call_id, call in self.by_id.items():  # a subagent's calls come after the call that started it
            if call.task in tasks or call.span.parent_span_id in subagents:
                found.append(call)
                if (agent := self.agents.subagents.get(call_id)) is not None:
                    subagents.add(agent.span.span_id)
        return found
