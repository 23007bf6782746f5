"""Make the spans of model requests from the CLI's messages, where no gateway sees the requests themselves.

The messages do not tell the output tokens of a subagent's requests, nor the status of a request that the CLI repeats,
nor requests of the CLI's own, such as a search's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from claude_agent_sdk import AssistantMessage, ServerToolUseBlock, TextBlock, ThinkingBlock, ToolUseBlock

from ._events import Events
from ._state import AgentState
from .contract import genai
from .contract.classify import Failure
from .contract.messages import ContentSanitizer
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext


class ChatSpans(Protocol):
    """Makes the ``chat`` spans of a conversation's model requests, and sends its text while it is written.

    The translator calls the methods in the order of the CLI's messages.
    """

    @property
    def is_bypassed(self) -> bool:
        """Return whether the CLI has had an answer to a request that this source does not see."""
        ...

    def status(self, agent: AgentState | None, status: object) -> None:
        """Take the CLI's status: ``requesting``, ``compacting`` or None."""

    def retried(self, agent: AgentState, about: Mapping[str, Any]) -> Span:
        """Note that the CLI repeats a request, and return the span for its log event; see `genai.retry`."""
        ...

    def stream_event(self, agent: AgentState, event: Mapping[str, Any]) -> None:
        """Take a partial message."""

    def answered(self, agent: AgentState, message: AssistantMessage) -> Span:
        """Take a message of the model, and return the span for its events."""
        ...

    def failed(self, agent: AgentState, failure: Failure, text: str) -> None:
        """Take the CLI's message that a request has failed for good."""

    def asks_again(self, agent: AgentState) -> None:
        """Note that an agent's model gets tool results, so that its next request begins."""

    def ended(self, agent: AgentState, failure: Failure | None) -> None:
        """Note that an agent has ended. The main agent ends with each turn."""

    def aborted(self, agents: Iterable[AgentState]) -> None:
        """Set the content of all open requests of the agents on their spans, and end those that have been answered.

        The caller ends the other spans as failed.
        """

    def waiting_since(self, agent_id: str | None) -> int | None:
        """Return the start of the first request that waits for the agent with a task's id to be known, or None."""
        ...

    def place_waiting(self) -> None:
        """Open the spans of the requests whose agents are known now."""

    def place_rest(self, parent: Span | TraceContext) -> None:
        """Open the spans of the requests whose agents have remained unknown."""


class MessageChats:
    """Makes the ``chat`` spans from the CLI's messages.

    There are partial messages of the main agent's requests only, and none at all if the CLI was started to ask a
    gateway. Without them a request begins when its agent did or when the last tool result came.
    """

    is_bypassed = False

    def __init__(
        self,
        spans: Spans,
        events: Events,
        content: ContentSanitizer | None,
        model: Callable[[], str | None],
        on_request: Callable[[AgentState], None],
        *,
        partial: bool = True,
    ) -> None:
        """Begin without requests; ``on_request`` is called when one has begun, ``model`` returns the run's model.

        ``partial``: the CLI was started with partial messages.
        """
        self._model = model
        self._spans = spans
        self._events = events
        self._content = content
        self._on_request = on_request
        self._partial = partial

    def status(self, agent: AgentState | None, status: object) -> None:
        if status == "requesting" and agent is not None:
            self._end(agent)
            self._open(agent, self._model(), self._spans.clock())

    def retried(self, agent: AgentState, about: Mapping[str, Any]) -> Span:
        if agent.chat is None:
            return agent.span
        agent.answer = []
        agent.chat.add_event("api_retry", self._spans.clock(), dict(about))
        return agent.chat

    def stream_event(self, agent: AgentState, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                chat = agent.chat or self._open(agent, self._model(), self._spans.clock())
                genai.set_streaming(chat)
                self._identify(agent, chat, event.get("message") or {})
            case "content_block_delta":
                self._delta(agent, event.get("delta") or {})
            case "message_delta" if agent.chat is not None:
                genai.set_usage(agent.chat, event.get("usage") or {})
                delta: dict[str, Any] = event.get("delta") or {}
                genai.set_finish(agent.chat, delta.get("stop_reason"))
            case "message_stop":
                self._stream_ended(agent)
            case _:
                pass

    def answered(self, agent: AgentState, message: AssistantMessage) -> Span:
        chat = self._of_stream(agent, message) if self._is_streamed(agent) else self._of_message(agent, message)
        if agent.chat is not None:
            agent.answer += [shown for block in message.content if (shown := _to_block(block)) is not None]
        if message.parent_tool_use_id is None and message.stop_reason is not None:
            self._end(agent)
        return chat

    def failed(self, agent: AgentState, failure: Failure, text: str) -> None:
        if not self._is_streamed(agent):
            # The request is known only now.
            self._end(agent, at=agent.boundary)
            self._open(agent, self._model(), agent.boundary or self._spans.clock())
        if agent.chat is not None:
            agent.chat.fail(failure.error_type, text)
            genai.set_unfinished(agent.chat)
            self._end(agent)

    def asks_again(self, agent: AgentState) -> None:
        if self._is_streamed(agent):
            return
        self._end(agent, at=agent.boundary)
        agent.boundary = self._spans.clock()

    def ended(self, agent: AgentState, failure: Failure | None) -> None:
        # Without partial messages a request is known from its answer only, so an open one has been answered.
        if agent.chat is not None and failure is not None and self._is_streamed(agent):
            agent.chat.fail(failure.error_type, "ended without a whole response")
            genai.set_unfinished(agent.chat)
        self._end(agent, at=None if self._is_streamed(agent) else agent.boundary)

    def aborted(self, agents: Iterable[AgentState]) -> None:
        for agent in agents:
            if agent.turn is None:
                self.ended(agent, None)
            elif agent.chat is not None:
                if self._partial:
                    genai.set_unfinished(agent.chat)
                genai.set_answer(agent.chat, agent.answer, self._content)

    def waiting_since(self, agent_id: str | None) -> int | None:
        return None

    def place_waiting(self) -> None:
        pass

    def place_rest(self, parent: Span | TraceContext) -> None:
        pass

    def _is_streamed(self, agent: AgentState) -> bool:
        return self._partial and agent.turn is not None

    def _open(self, agent: AgentState, model: str | None, start: int) -> Span:
        chat = self._spans.open_child(f"chat {model}" if model else "chat", agent.span, genai.chat(model), start=start)
        chat.kind = "client"
        agent.chat, agent.message_id, agent.answer = chat, None, []
        self._on_request(agent)
        return chat

    def _end(self, agent: AgentState, *, at: int | None = None) -> None:
        if agent.chat is not None:
            genai.set_answer(agent.chat, agent.answer, self._content)
            self._spans.close(agent.chat, end=at)
            agent.chat = None

    def _identify(self, agent: AgentState, chat: Span, message: Mapping[str, Any]) -> None:
        agent.message_id = message.get("id")
        genai.set_response(chat, message)

    def _delta(self, agent: AgentState, delta: Mapping[str, Any]) -> None:
        if agent.chat is not None:
            genai.set_first_chunk(agent.chat, self._spans.clock())
        if delta.get("type") == "text_delta":
            self._events.delta(str(delta.get("text", "")), agent.message_id, agent.chat or agent.span)

    def _stream_ended(self, agent: AgentState) -> None:
        # The CLI also ends a broken stream with `message_stop`, but without a stop reason.
        if agent.chat is not None and "gen_ai.response.finish_reasons" not in agent.chat.attributes:
            if agent.turn is None or not agent.turn.interrupted:
                return  # the CLI repeats the request without a stream, which gives one complete message
            agent.chat.fail("cancelled", "interrupted")
            genai.set_unfinished(agent.chat)
        self._end(agent)

    def _of_stream(self, agent: AgentState, message: AssistantMessage) -> Span:
        if message.stop_reason is not None and agent.chat is not None:
            # The stream broke, and the CLI repeated the request without one: this is the complete answer.
            agent.answer = []
            self._identify(agent, agent.chat, _response(message))
            genai.set_usage(agent.chat, message.usage or {})
            genai.set_finish(agent.chat, message.stop_reason)
        return agent.chat or agent.span

    def _of_message(self, agent: AgentState, message: AssistantMessage) -> Span:
        now, chat = self._spans.clock(), agent.chat
        if chat is None or agent.message_id != message.message_id:
            self._end(agent, at=agent.boundary)
            chat = self._open(agent, message.model, agent.boundary or now)
            self._identify(agent, chat, _response(message))
        agent.boundary = now
        return chat


def _to_block(block: object) -> dict[str, Any] | None:
    """Return a block of the SDK in the form of the Messages API, or None if it is not shown in spans."""
    match block:
        case TextBlock():
            return {"type": "text", "text": block.text}
        case ThinkingBlock():
            return {"type": "thinking", "thinking": block.thinking}
        case ToolUseBlock() | ServerToolUseBlock():
            kind = "tool_use" if isinstance(block, ToolUseBlock) else "server_tool_use"
            return {"type": kind, "id": block.id, "name": block.name, "input": block.input}
        case _:
            return None


def _response(message: AssistantMessage) -> dict[str, Any]:
    return {"id": message.message_id, "model": message.model, "usage": message.usage}
