"""Follow the agents of a conversation, main and sub: their spans, prompts and model requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from claude_agent_sdk import AssistantMessage, TextBlock

from ._chats import ChatSpans, MessageChats
from ._credential import ApiAddress
from ._events import Events
from ._gateway_chats import FindPlace, GatewayChats, IsStopping
from ._observer import Observe
from ._state import AgentState, ToolCall, TurnState
from .contract import genai
from .contract.attachments import AttachedBlock, view_of
from .contract.classify import Failure, budget_spent_in, classify, status_in
from .contract.messages import ContentSanitizer
from .contract.protocol import LogData, Prompt, SubagentStartData
from .contract.sanitize import Sanitizer, ToolSanitizer, brief
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext

_DEFAULT_SUBAGENT = "general-purpose"
"""The CLI's subagent for a call that names none."""

_MAX_PROMPTS = 100
"""Maximum number of prompts that are recognised in the history of model requests."""


class Agents:
    """The agents that have not ended. The main agent ends with each turn, a subagent with the call that started it."""

    def __init__(
        self,
        events: Events,
        spans: Spans,
        model: str | None,
        sanitize: Sanitizer | None,
        sanitize_tools: ToolSanitizer | None,
        *,
        whole_requests: bool,
    ) -> None:
        """Begin without agents; ``model`` is the configured one, and a sanitizer of None leaves out its texts.

        ``whole_requests``: put the messages, instructions and tools of model requests into their spans.
        """
        self.main: AgentState | None = None
        self.subagents: dict[str, AgentState] = {}
        """The subagents by the ids of their calls."""
        self.model = model
        self.sanitize = sanitize
        """Sanitizer of prompts and answers in spans."""
        self.on_request: Callable[[], None] = lambda: None
        """Called when a model request of the main agent has begun, which an interrupt can then end."""
        self._events = events
        self._spans = spans
        self._whole_requests = whole_requests
        self._prompts: deque[str] = deque(maxlen=_MAX_PROMPTS)
        """The last prompts of the user and for subagents."""
        self._content: ContentSanitizer | None = None
        if sanitize is not None:
            self._content = ContentSanitizer(sanitize, sanitize_tools, whole_requests, self._prompts)
        self.chats: ChatSpans = self._message_chats(partial=True)

    # -- the source of model requests -------------------------------------------------------------

    def use_gateway(
        self,
        server: ApiAddress,
        find_place: FindPlace,
        is_stopping: IsStopping,
        likely_trace: Callable[[], str | None] | None,
    ) -> Observe:
        """Make the spans of model requests from those that pass through the gateway to ``server``.

        Return the function that the gateway calls for each request. For ``likely_trace`` see `GatewayChats`.
        """
        chats = GatewayChats(
            self._spans, self._events, self._content, server, find_place, self._request_begun, is_stopping
        )
        chats.likely_trace = likely_trace
        self.chats = chats
        return lambda headers: chats.begin(headers) if self.chats is chats else None

    def fall_back(self) -> None:
        """Make the spans of model requests from messages, as the CLI does not ask the gateway."""
        text = (
            "the CLI's model requests do not pass through the gateway, as its settings send them elsewhere: they are"
            " traced from the CLI's messages, without live text; an interrupt waits for the next message, and the"
            " gateway counts no costs. AGENT_GATEWAY=off avoids this"
        )
        self._events.emit(LogData(stream="runner", text=text), self.main.span if self.main is not None else None)
        self.chats = self._message_chats(partial=False)

    def _message_chats(self, *, partial: bool) -> MessageChats:
        return MessageChats(
            self._spans, self._events, self._content, lambda: self.model, self._request_begun, partial=partial
        )

    def _request_begun(self, agent: AgentState) -> None:
        if agent.turn is not None:
            agent.turn.requested = True
            self.on_request()

    def request_failed(self, agent: AgentState, message: AssistantMessage) -> None:
        """Take the CLI's message that an agent's model request has failed for good."""
        text = "".join(block.text for block in message.content if isinstance(block, TextBlock))
        failure = classify(budget_spent=budget_spent_in(text), status=status_in(text), label=message.error, text=text)
        self.chats.failed(agent, failure, text)
        if agent.turn is None:
            agent.failure = failure
        else:
            agent.turn.error_type = failure.error_type

    # -- beginnings -------------------------------------------------------------------------------

    def begin_main(self, turn: TurnState, prompt: Prompt | None) -> None:
        """Begin the main agent with a turn, whose span is the agent's own."""
        if prompt is not None:
            self._set_prompt(turn.span, prompt.text, prompt.content)
        self.main = AgentState(turn.span, turn, boundary=turn.span.start)

    def subagent(self, call_id: str, call: ToolCall, name: str | None = None) -> AgentState:
        """Return the subagent that a call started; if it is not known yet, open its span and report it."""
        agent = self.subagents.get(call_id)
        if agent is None:
            name = str(name or call.input.get("subagent_type") or _DEFAULT_SUBAGENT)
            start, attributes = self.chats.waiting_since(call.task), genai.invoke_subagent(name)
            span = self._spans.open_child(f"invoke_agent {brief(name)}", call.span, attributes, start=start)
            self._set_prompt(span, str(call.input.get("prompt") or ""))
            self._events.emit(
                SubagentStartData(tool_use_id=call_id, agent_name=name, task_id=call.task), span, opens=True
            )
            agent = self.subagents[call_id] = AgentState(span, boundary=span.start)
        return agent

    def _set_prompt(self, span: Span, prompt: str, content: Iterable[AttachedBlock] = ()) -> None:
        genai.set_input(span, prompt, self.sanitize, map(view_of, content))
        if self._whole_requests:
            self._prompts.append(prompt.strip())

    # -- ends -------------------------------------------------------------------------------------

    def end_main(self, failure: Failure | None) -> None:
        """End the main agent; its turn's span stays open."""
        if (agent := self.main) is not None:
            self.main = None
            self.chats.place_rest(agent.span)
            self.chats.ended(agent, failure)

    def end_subagent(self, call_id: str, call: ToolCall, end: int | None) -> None:
        """End the subagent that a call started, if any, with the call's outcome."""
        agent = self.subagents.pop(call_id, None)
        if agent is None:
            return
        error_type = call.span.error_type
        if error_type is not None:
            agent.span.fail(error_type, call.span.error_message)
        self.chats.ended(agent, Failure(error_type, False) if error_type == "cancelled" else None)
        if agent.text:
            genai.set_output(agent.span, agent.text, None, self.sanitize)
        self._spans.close(agent.span, end=end)

    def abort(self, parent: Span | TraceContext) -> None:
        """Forget all agents, and place requests of unknown agents below ``parent``; the caller ends the spans."""
        self.chats.place_rest(parent)
        agents = [*self.subagents.values(), *([self.main] if self.main is not None else [])]
        self.chats.aborted(agents)
        for agent in agents:
            if agent.text:
                genai.set_output(agent.span, agent.text, "error", self.sanitize)
        self.subagents.clear()
        self.main = None
