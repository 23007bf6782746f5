"""Translate the Claude Agent SDK's messages into events and spans.

Its only I/O is a look at the size of a saved tool result; time comes from `Spans.clock`. It relies on an order of
messages that was observed with SDK 0.2.189 and CLI 2.1.332: there is one assistant message per content block, tool
results are user messages, and the messages of subagents have the id of the call that started them and no stream events.
"""

from __future__ import annotations

from collections.abc import Mapping

from claude_agent_sdk import (
    AssistantMessage,
    HookEventMessage,
    Message,
    RateLimitEvent,
    ResultMessage,
    ServerToolResultBlock,
    ServerToolUseBlock,
    StreamEvent,
    SystemMessage,
    TaskNotificationMessage,
    TaskStartedMessage,
    TaskUpdatedMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

from ._agents import Agents
from ._background import BackgroundTasks
from ._config import Config, config_directory
from ._credential import ApiAddress
from ._events import Events
from ._gateway_chats import RequestPlace
from ._hook_times import HookTimes
from ._model_access import ModelAccess
from ._observer import Observe
from ._span_settings import sanitizer_of, tool_sanitizer_of
from ._state import AgentState
from ._tool_calls import OpenCalls
from ._turns import Turns
from .contract.callbacks import given_to_runner
from .contract.protocol import ErrorType, LogData, TextData, ThinkingData
from .contract.spans import Span, Spans

_SYNTHETIC = "<synthetic>"
_STOP_TOOL = "TaskStop"
"""The CLI's tool with which the model stops a background task."""


class Translator:
    """Follows one conversation: passes each message on to the turns, agents, tool calls or tasks that it is about."""

    def __init__(
        self, config: Config, events: Events, spans: Spans, access: ModelAccess, environ: Mapping[str, str]
    ) -> None:
        """Begin; ``environ`` is the CLI's environment. Raise `ConfigError` if a configured sanitizer is not found."""
        sanitize, sanitize_tools = sanitizer_of(config, config.content), tool_sanitizer_of(config)
        whole = config.content == "full"
        self.spans = spans
        self.agents = Agents(events, spans, config.model, sanitize, sanitize_tools, whole_requests=whole)
        given = given_to_runner(config.options, config.callbacks, config.messages)
        self.turns = Turns(events, spans, self.agents, access, config.resume is not None, given)
        disallowed, directory = config.disallowed_tools, config_directory(environ)
        self.calls = OpenCalls(events, spans, self.turns, self.agents, sanitize_tools, disallowed, directory)
        self.background = BackgroundTasks(events, spans, self.turns, self.agents, self.calls)
        self._events = events
        self._hooks = HookTimes()
        self._state: str | None = None
        """The state in the CLI's last ``session_state_changed`` message; None before the first."""

    @property
    def idle(self) -> bool:
        """Return whether no turn and no background task is running and the CLI is not about to begin a turn."""
        return self.turns.takes_prompts and self._state in (None, "idle") and not self.background.running

    # -- messages ---------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Process the next message of the conversation."""
        match message:
            case StreamEvent():
                if (agent := self.calls.agent(message.parent_tool_use_id)) is not None:
                    self.agents.chats.stream_event(agent, message.event)
            case AssistantMessage():
                self._assistant(message)
            case UserMessage():
                self._user(message)
            case TaskStartedMessage():
                self.background.started(message)
            case TaskNotificationMessage():
                self.background.settle(message.task_id, message.status, message.summary)
            case TaskUpdatedMessage():
                self.background.updated(message)
            case HookEventMessage():
                self._hooks.observe(message, self.calls.by_id.values(), self.spans.clock())
            case SystemMessage():
                self._system(message)
            case ResultMessage():
                self.turns.end(message, self._end_calls)
            case RateLimitEvent():
                if message.rate_limit_info.status != "allowed":
                    text = f"rate limit: {message.rate_limit_info.status}"
                    self._events.emit(LogData(stream="runner", text=text), self.turns.current_span)
            case _:
                pass

    def _system(self, message: SystemMessage) -> None:
        data = message.data
        match message.subtype:
            case "init":
                self.turns.take_init(data)
            case "status":
                self.agents.chats.status(self.agents.main, data.get("status"))
                self.turns.note_settings(None, data.get("permissionMode"))
            case "api_retry":
                self.turns.take_retry(data)
            case "permission_denied":
                self.calls.denied(data)
            case "background_tasks_changed":
                self.background.listed(data.get("tasks") or ())
            case "session_state_changed":
                self._state = data.get("state")
                self.turns.own_expected = self.turns.own_expected and self._state != "idle"
            case _:
                pass

    def _assistant(self, message: AssistantMessage) -> None:
        agent = self.calls.agent(message.parent_tool_use_id)
        if agent is None:
            return
        if self.agents.chats.is_bypassed:
            self.agents.fall_back()
        if message.model == _SYNTHETIC:
            self.agents.request_failed(agent, message)
            return
        span = self.agents.chats.answered(agent, message)
        for block in message.content:
            self._block(block, agent, message, span)

    def _block(self, block: object, agent: AgentState, message: AssistantMessage, span: Span) -> None:
        message_id, parent = message.message_id, message.parent_tool_use_id
        match block:
            case TextBlock(text=text):
                agent.text = text
                self._events.emit(TextData(text=text, message_id=message_id, parent_tool_use_id=parent), span)
            case ThinkingBlock(thinking=text):
                self._events.emit(ThinkingData(text=text, message_id=message_id, parent_tool_use_id=parent), span)
            case ToolUseBlock() | ServerToolUseBlock():
                self.calls.begin(block.id, block.name, block.input, parent)
            case ToolResultBlock() | ServerToolResultBlock():
                self._tool_result(block, self.spans.clock())
            case _:
                pass

    def _user(self, message: UserMessage) -> None:
        agent, now = self.calls.agent(message.parent_tool_use_id), self.spans.clock()
        if agent is not None:
            self.agents.chats.asks_again(agent)
        for block in message.content if isinstance(message.content, list) else ():
            if isinstance(block, ToolResultBlock):
                self._tool_result(block, now)

    def _tool_result(self, block: ToolResultBlock | ServerToolResultBlock, now: int) -> None:
        is_error = getattr(block, "is_error", None) is True
        call = self.calls.take_result(block.tool_use_id, block.content, is_error, now)
        if call is not None and call.task not in self.background.running:
            self.calls.close(block.tool_use_id, end=now)

    def _end_calls(self, error_type: ErrorType) -> None:
        self.calls.close_all(error_type, but=self.background.running)

    def abort(self, error_type: ErrorType, message: str) -> None:
        """End everything that is open as failed, as the CLI has ended or is about to."""
        self.background.abort()
        self.agents.abort(self.turns.context or self.spans.new_trace())
        self.spans.close_all(error_type, message)
        self.calls.by_id.clear()
        if self.turns.current is not None:
            self.turns.close(self.turns.current, error_type)

    # -- model requests ---------------------------------------------------------------------------

    def use_gateway(self, server: ApiAddress, *, propagate: bool) -> Observe:
        """Make the spans of model requests from those that pass through the gateway to ``server``.

        Return the function that the gateway calls for each request. With ``propagate`` the requests carry the context
        of their spans.
        """
        likely_trace = self._likely_trace if propagate else None
        return self.agents.use_gateway(server, self._find_place, self._is_stopping, likely_trace)

    def _find_place(self, agent_id: str | None, is_search: bool) -> RequestPlace | None:
        """Return the place of a model request; see `_gateway_chats.FindPlace`."""
        turns = self.turns
        if agent_id is not None:
            caller = self.calls.caller_of(agent_id)
            agent = self.calls.agent(caller) if caller is not None else None
        elif turns.takes_prompts and turns.last_context is not None:
            return RequestPlace(None, turns.last_context)  # of a tool that still runs in the background
        else:
            agent = self.agents.main if turns.started else None
        if agent is None:
            return None
        if not is_search:
            return RequestPlace(agent, agent.span)
        searches = [
            call.span
            for call in self.calls.by_id.values()
            if call.name == "WebSearch" and call.span.parent_span_id == agent.span.span_id
        ]
        return RequestPlace(agent, searches[0] if len(searches) == 1 else agent.span)

    def _is_stopping(self) -> bool:
        """Return whether model requests may end because of an interrupt, or because a task is stopped."""
        turn = self.turns.current
        if turn is not None and (turn.interrupted or turn.given_up is not None):
            return True
        return self.background.is_stopping or any(call.name == _STOP_TOOL for call in self.calls.by_id.values())

    def _likely_trace(self) -> str | None:
        """Return the id of the trace of a request whose place is not known yet."""
        return self.turns.context.trace_id if self.turns.context is not None else None
