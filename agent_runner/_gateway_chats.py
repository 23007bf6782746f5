"""Make the spans of model requests from what passes through the gateway: each request, and each repetition of it.

The CLI marks a subagent's request with the id of its task. A request may arrive before the message that names the task
or begins the turn, so its span gets its parent when that is known.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from claude_agent_sdk import AssistantMessage

from ._answers import NOT_JSON, AnswerEvent, Block, Delta
from ._credential import ApiAddress
from ._events import Events
from ._state import AgentState
from .contract import genai
from .contract.classify import Failure, classify
from .contract.messages import ContentSanitizer
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext

_AGENT_ID = "x-claude-code-agent-id"
_REQUEST_CLASS = "x-claude-code-request-class"
_CONVERSATION = "x-claude-code-session-id"
"""The header with the id of the conversation, in all requests of the CLI."""
_TIMEOUT = "x-stainless-timeout"
"""The header with the seconds after which the CLI abandons a request."""
_MAX_ANSWERED = 256
"""Maximum number of responses whose spans are kept for the events of their messages."""
_SILENCE = 9_000_000_000
"""Nanoseconds of silence in a response after which the CLI may abandon it: its shortest setting is 10 s."""


class _Tool(msgspec.Struct):
    name: str = ""
    type: str = "custom"


class _Body(msgspec.Struct):
    """The parameters of a request that its span has."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: Any = None
    stream: bool = False
    output_config: Any = None
    tools: list[_Tool] = []


_decoder = msgspec.json.Decoder(_Body)


class RequestPlace(NamedTuple):
    """The agent that a request is for, if any, and its span's parent: the agent's span, or that of a tool call."""

    agent: AgentState | None
    parent: Span | TraceContext


FindPlace = Callable[[str | None, bool], RequestPlace | None]
"""Returns the place of a request from its task's id and whether it is a search's, or None if it is not known yet."""

IsStopping = Callable[[], bool]
"""Returns whether requests may end because of an interrupt, or because their task is stopped."""


class GatewayChats:
    """Makes the ``chat`` spans from the requests that pass through the gateway. For the methods see `ChatSpans`."""

    def __init__(
        self,
        spans: Spans,
        events: Events,
        content: ContentSanitizer | None,
        server: ApiAddress,
        find_place: FindPlace,
        on_request: Callable[[AgentState], None],
        is_stopping: IsStopping,
    ) -> None:
        """Begin without requests; ``on_request`` is called when one has begun."""
        self.spans = spans
        self.events = events
        self.content = content
        self.server = server
        self.is_stopping = is_stopping
        self.compacting = False
        self.likely_trace: Callable[[], str | None] | None = None
        """Returns the id of the trace that a request without a place will be in; None if requests carry no context."""
        self._find_place = find_place
        self._on_request = on_request
        self._seen = False
        self._waiting: list[ChatRequest] = []
        self._running: list[ChatRequest] = []
        self._answered: OrderedDict[str, ChatRequest] = OrderedDict()

    # -- what the CLI's messages tell ---------------------------------------------------------------

    @property
    def is_bypassed(self) -> bool:
        return not self._seen

    def status(self, agent: AgentState | None, status: object) -> None:
        self.compacting = status == "compacting"

    def retried(self, agent: AgentState, about: Mapping[str, Any]) -> Span:
        return agent.span  # each repetition is a request with a span of its own

    def stream_event(self, agent: AgentState, event: Mapping[str, Any]) -> None:
        pass

    def answered(self, agent: AgentState, message: AssistantMessage) -> Span:
        request = self._answered.get(message.message_id or "")
        if request is None:
            return agent.span
        request.open(RequestPlace(agent, agent.span))
        return request.span

    def failed(self, agent: AgentState, failure: Failure, text: str) -> None:
        pass

    def asks_again(self, agent: AgentState) -> None:
        pass

    def ended(self, agent: AgentState, failure: Failure | None) -> None:
        """End the requests of a failed agent: its result can arrive before the CLI's disconnection from the gateway."""
        for request in [each for each in self._running if each.agent is agent and failure is not None]:
            request.close(failure, "ended without a whole response")

    def aborted(self, agents: Iterable[AgentState]) -> None:
        for request in self._running:
            genai.set_unfinished(request.span)
            request.set_content()

    def waiting_since(self, agent_id: str | None) -> int | None:
        starts = (request.span.start for request in self._waiting if agent_id and request.agent_id == agent_id)
        return min(starts, default=None)

    # -- what the gateway tells ---------------------------------------------------------------------

    def begin(self, headers: Mapping[str, str]) -> ChatRequest:
        """Return a new request, to which the gateway reports what it sends and receives."""
        self._seen = self._seen or _CONVERSATION in headers
        request = ChatRequest(self, headers)
        self._running.append(request)
        return request

    def find_place(self, request: ChatRequest) -> RequestPlace | None:
        """Return a request's place; a request without one is asked again when it may be known."""
        place = self._find_place(request.agent_id, request.is_search)
        if place is None:
            self._waiting.append(request)
        return place

    def opened(self, request: ChatRequest) -> None:
        """Note that a request's span is open."""
        if request.agent is not None and request.request_class == "main":
            self._on_request(request.agent)

    def place_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            request.place()

    def place_rest(self, parent: Span | TraceContext) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            request.open(RequestPlace(None, parent))

    def remember(self, message_id: str, request: ChatRequest) -> None:
        """Keep a request by the id of its response, for the events of that message."""
        self._answered[message_id] = request
        if len(self._answered) > _MAX_ANSWERED:
            self._answered.popitem(last=False)

    def forget(self, request: ChatRequest) -> None:
        """Drop a request that has ended."""
        self._running.remove(request)


class ChatRequest:
    """One model request that passes through the gateway, and its span."""

    def __init__(self, chats: GatewayChats, headers: Mapping[str, str]) -> None:
        self.agent: AgentState | None = None
        self.agent_id = headers.get(_AGENT_ID)
        self.is_search = False
        self.span = chats.spans.orphan("chat", genai.chat(None))
        self.span.kind = "client"
        genai.set_server(self.span, *chats.server)
        self._chats = chats
        self._class = headers.get(_REQUEST_CLASS) or ("subagent" if self.agent_id else None)
        self._conversation = headers.get(_CONVERSATION)
        self._timeout = headers.get(_TIMEOUT, "")
        self._has_tools = False
        self._message_id: str | None = None
        self._body: bytes | None = None
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[str] = []
        """The pieces of the block that is being received: of its text, or of the JSON of a tool's arguments."""
        self._unsent: list[str] = []
        self._status: int | None = None
        self._last = 0
        """Time of the last progress of the answer: its head, or an event that is no ping."""
        self._end: int | None = None

    def sent(self, body: bytes) -> None:
        """Take the whole body that is sent to the model's API."""
        try:
            request = _decoder.decode(body)
        except NOT_JSON:
            request = _Body()  # the API will refuse it
        self._has_tools = any(tool.type == "custom" for tool in request.tools)
        self.is_search = any(tool.type.startswith("web_search") for tool in request.tools) and not self._has_tools
        genai.set_request(self.span, msgspec.structs.asdict(request))
        if self._chats.content is not None and self._chats.content.whole_requests:
            self._body = body  # put on the span at its end, because that takes milliseconds
        self.place()

    @property
    def _is_open(self) -> bool:
        return bool(self.span.trace_id)

    def place(self) -> None:
        """Open the span if its place is known."""
        if place := self._chats.find_place(self):
            self.open(place)

    def open(self, place: RequestPlace) -> None:
        """Open the span in its place, unless it is open, and send and end what waited for that."""
        if self._is_open:
            return
        self.agent = place.agent
        self._chats.spans.adopt(self.span, place.parent)
        self._chats.opened(self)
        for text in self._unsent:
            self._send(text)
        self._unsent.clear()
        if self._end is not None:
            self._close(self._end)

    @property
    def traceparent(self) -> str | None:
        """Return the context of the request's span, if requests carry it."""
        if self._chats.likely_trace is None:
            return None
        trace_id = self.span.trace_id or self._chats.likely_trace()
        return TraceContext(trace_id, self.span.span_id).traceparent if trace_id else None

    def _close(self, end: int) -> None:
        self.span.attributes["chat.request_class"] = self.request_class
        self._chats.spans.close(self.span, end=end)

    def answered(self, status: int) -> None:
        """Take the status of the answer, whose first byte has arrived."""
        self._last = self._chats.spans.clock()
        genai.set_first_byte(self.span, self._last)
        self.span.attributes["http.response.status_code"] = status
        self._status = status

    def receive(self, event: AnswerEvent) -> None:
        """Take an event of the answer, or the whole message as one."""
        if event.type != "ping":  # after some pings the CLI waits for another event
            self._last = self._chats.spans.clock()
        if event.error is not None:
            is_status = self._status is not None and self._status >= 400
            failure = classify(status=self._status if is_status else None, label=event.error.type)
            self.span.fail(failure.error_type, f"{event.error.type}: {event.error.message}")
        if (message := event.message or (event if event.type == "message" else None)) is not None:
            genai.set_response(self.span, {"id": message.id, "model": message.model, "usage": message.usage})
            self._message_id = message.id
            self._chats.remember(message.id, self)
            for block in message.content:
                self._begin_block(block)
        if event.content_block is not None:
            self._begin_block(event.content_block)
        if event.type == "content_block_delta" and event.delta is not None:
            self._delta(event.delta)
        if event.type in ("message_delta", "message"):
            genai.set_usage(self.span, event.usage)
            genai.set_finish(self.span, event.delta.stop_reason if event.delta is not None else event.stop_reason)

    def end(self, failure: Failure | None = None, message: str = "") -> None:
        """End the request as the gateway saw it end; it cannot tell whether the CLI was stopped or gave up itself."""
        is_cancelled = failure is not None and failure.error_type == "cancelled"
        if is_cancelled and (timeout := self._timeout_at(self._chats.spans.clock())):
            failure, message = Failure("timeout", retryable=True), timeout
        self.close(failure, message)

    def close(self, failure: Failure | None, message: str) -> None:
        """End the request's span, as failed if there is a failure; only the first call counts."""
        if self._end is not None:
            return
        self._end = self._chats.spans.clock()
        self._chats.forget(self)
        if failure is not None:
            self.span.fail(failure.error_type, message)
        if self.span.error_type is not None:
            genai.set_unfinished(self.span)
        self.set_content()
        if self._is_open:
            self._close(self._end)

    def set_content(self) -> None:
        """Put on the span what has been sent and received, as far as configured, and forget it."""
        content, body, blocks = self._chats.content, self._body, self._blocks
        if content is None:
            return
        self._end_block()
        self._body, self._blocks = None, []
        genai.set_answer(self.span, blocks, content)
        if body is not None:
            with contextlib.suppress(*NOT_JSON):
                genai.set_whole_request(self.span, msgspec.json.decode(body, type=dict[str, Any]), content)

    def _timeout_at(self, end: int) -> str:
        """Return how long the CLI waited if it has abandoned the request by itself, else an empty text."""
        turn = self.agent.turn if self.agent is not None else None
        if self._chats.is_stopping() or (turn is not None and turn.interrupted):
            return ""
        if self._status is not None:
            silent = end - self._last
            return f"the CLI waited {silent / 1e9:.0f} s for more of the answer" if silent >= _SILENCE else ""
        if not self._timeout.isdigit() or end - self.span.start < int(self._timeout) * 1_000_000_000:
            return ""
        return f"the CLI waited {self._timeout} s for an answer"

    @property
    def request_class(self) -> str:
        """Return the CLI's own class of request, which it names only to Anthropic's API, or else a derived one."""
        if self._conversation != self._chats.spans.common.get("gen_ai.conversation.id"):
            return "tool"  # as of another CLI that a tool started
        if self._class is not None:
            return self._class
        if self._chats.compacting:
            return "compaction"
        return "main" if self._has_tools else "auxiliary"

    def _begin_block(self, block: Block) -> None:
        if self._chats.content is not None:
            self._end_block()
            self._blocks.append(msgspec.structs.asdict(block))

    def _end_block(self) -> None:
        """Combine the pieces of the last block."""
        if not self._pieces or not self._blocks:
            return
        block, received = self._blocks[-1], "".join(self._pieces)
        self._pieces.clear()
        if block["type"] in ("text", "thinking"):
            block[block["type"]] = f"{block[block['type']] or ''}{received}"
        else:
            block["input"] = None  # remains if the stream has broken
            with contextlib.suppress(*NOT_JSON):
                block["input"] = msgspec.json.decode(received)

    def _delta(self, delta: Delta) -> None:
        genai.set_first_chunk(self.span, self._chats.spans.clock())
        if self._chats.content is not None and (piece := delta.text or delta.thinking or delta.partial_json):
            self._pieces.append(piece)
        if delta.type == "text_delta":
            if self._is_open:
                self._send(delta.text)
            else:
                self._unsent.append(delta.text)

    def _send(self, text: str) -> None:
        """Send a piece of the main conversation's text as an event."""
        if self.request_class == "main":
            self._chats.events.delta(text, self._message_id, self.span)
