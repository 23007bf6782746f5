"""Translate the Claude Agent SDK's messages into events and spans.

It does no I/O; time comes from `Spans.clock`. It relies on an order of messages that was observed with SDK 0.2.187 and
CLI 2.1.330: there is one assistant message per content block, tool results are user messages, and the messages of
subagents have the id of the call that started them and no stream events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

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

from ._background import BackgroundTasks, RunningTask
from ._chats import ChatSpans, MessageChats
from ._credential import ApiAddress
from ._denials import denier_in_result, denier_of_reason
from ._events import Events
from ._gateway_chats import GatewayChats, RequestPlace
from ._hook_times import HookTimes
from ._messages import ModelUsage, bounded, error_text, model_usage, result_data, start_data, used_since
from ._model_access import ModelAccess, ModelVerdict
from ._observer import Observe
from ._state import MAX_INPUT, AgentState, RunOutcome, ToolCall, TurnState
from .contract import genai
from .contract.classify import Failure, budget_spent_in, classify, status_in
from .contract.messages import ContentSanitizer
from .contract.protocol import (
    DeniedBy,
    ErrorData,
    ErrorType,
    LogData,
    SubagentStartData,
    TaskState,
    TextData,
    ThinkingData,
    ToolResultData,
    ToolUseData,
    TurnStartData,
    to_json,
)
from .contract.sanitize import Sanitizer, ToolSanitizer, brief, preview
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext

_SYNTHETIC = "<synthetic>"
_DEFAULT_SUBAGENT = "general-purpose"
"""The CLI's subagent for a call that names none."""
CALL_SECONDS = 0.25
"""Maximum seconds to wait for the message with a tool call."""

_MAX_PROMPTS = 100
"""Maximum number of prompts that are recognised in the history of model requests."""


@dataclass(slots=True)
class Translator:
    """Follows one conversation: its turn, its agents and its tool calls that have not ended."""

    events: Events
    spans: Spans
    model: str | None = None
    sanitize: Sanitizer | None = preview
    """Sanitizer of prompts and answers in spans; None leaves them out."""
    sanitize_tools: ToolSanitizer | None = None
    """Sanitizer of tools' arguments and results in spans; None leaves them out."""
    whole_requests: bool = False
    """True to put the messages, instructions and tools of model requests into their spans."""
    resumed: bool = False
    disallowed: tuple[str, ...] = ()
    """The configured tools and rules that are refused."""
    access: ModelAccess = field(default_factory=lambda: ModelAccess({}))
    cost_before: float = 0.0
    usage_before: ModelUsage = field(default_factory=dict[str, dict[str, float]])
    turn: TurnState | None = None
    outcome: RunOutcome = field(default_factory=RunOutcome)
    state: str | None = None
    """The state in the CLI's last ``session_state_changed`` message; None before the first."""
    started: bool = False
    """True when the agent has started and the ``start`` event was sent."""
    expects_own_turn: bool = False
    """True when a background task has ended, for which the CLI begins a turn."""
    tools: dict[str, ToolCall] = field(default_factory=dict[str, ToolCall])
    """The tool calls that have not ended, by id."""
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
    on_request: Callable[[], None] = lambda: None
    """Called when a model request of the main agent has begun, which an interrupt can then end."""
    on_turn: Callable[[Span], None] = lambda span: None
    """Called when a turn's span was opened."""
    on_call: Callable[[str, ToolCall], None] = lambda tool_id, call: None
    """Called when a tool call's span was opened."""
    chats: ChatSpans = field(init=False)
    _hooks: HookTimes = field(default_factory=HookTimes)
    _awaited: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    _denials: dict[str, DeniedBy] = field(default_factory=dict[str, DeniedBy])
    """Who denied the calls whose results have not come, by the calls' ids."""
    _agents: dict[str | None, AgentState] = field(default_factory=dict[str | None, AgentState])
    _prompts: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_PROMPTS))
    """The last prompts of the user and for subagents."""
    _pending_turn_start: TurnStartData | None = None
    _last_context: TraceContext | None = None

    def __post_init__(self) -> None:
        self.chats = self._message_chats(partial=True)

    def use_gateway(self, server: ApiAddress, *, propagate: bool) -> Observe:
        """Make the spans of model requests from those that pass through the gateway to ``server``.

        Return the function that the gateway calls for each request. With ``propagate`` the requests carry the context
        of their spans.
        """
        chats = GatewayChats(self.spans, self.events, self._content, server, self._find_place, self._request_begun)
        if propagate:
            chats.likely_trace = self._likely_trace
        self.chats = chats
        return lambda headers: chats.begin(headers) if self.chats is chats else None

    # -- turns ------------------------------------------------------------------------------------

    def begin_turn(self, parent: TraceContext, prompt: str | None, span_id: str = "") -> Span:
        """Open a turn's span. Its ``turn_start`` event waits for the ``start`` event of the first turn."""
        number = self.outcome.turns + 1
        span = self.spans.open_root("agent.execute", parent, genai.invoke_agent(self.model, number), span_id)
        if prompt is not None:
            self._set_prompt(span, prompt)
        self.turn = TurnState(number, span)
        self._agents[None] = AgentState(span, self.turn, boundary=span.start)
        self.on_turn(span)
        self._pending_turn_start = TurnStartData(
            turn=number, prompt_size=len((prompt or "").encode("utf-8", "replace"))
        )
        if self.started:
            self._emit_turn_start()
        return span

    def _begin_own_turn(self) -> Span:
        """Begin a turn without a prompt, as the CLI does when a background task has ended."""
        self.expects_own_turn = False
        return self.begin_turn(self._last_context or self.spans.new_trace(), None)

    def _emit_turn_start(self) -> None:
        if self._pending_turn_start is not None and self.turn is not None:
            self.events.emit(self._pending_turn_start, self.turn.span, opens=True)
        self._pending_turn_start = None

    @property
    def requested(self) -> bool:
        """Return whether the turn has sent a model request."""
        return self.turn is not None and self.turn.requested

    @property
    def takes_prompts(self) -> bool:
        """Return whether a prompt can begin a turn: none is running, and the CLI is not about to begin its own."""
        return self.turn is None and not self.expects_own_turn

    @property
    def idle(self) -> bool:
        """Return whether no turn and no background task is running and the CLI is not about to begin a turn."""
        waits = self.background.running or self.expects_own_turn
        return self.turn is None and self.state in (None, "idle") and not waits

    # -- messages ---------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Process the next message of the conversation."""
        match message:
            case StreamEvent():
                if (agent := self._agent(message.parent_tool_use_id)) is not None:
                    self.chats.stream_event(agent, message.event)
            case AssistantMessage():
                self._assistant(message)
            case UserMessage():
                self._user(message)
            case TaskStartedMessage():
                self._task_started(message)
            case TaskNotificationMessage():
                self.background.settle(message.task_id, message.status, message.summary)
            case TaskUpdatedMessage():
                self.background.settle(message.task_id, message.status)
                if message.patch.get("is_backgrounded") is True:
                    self._task_in_background(message.task_id)
            case HookEventMessage():
                self._hooks.observe(message, self.tools.values(), self.spans.clock())
            case SystemMessage():
                self._system(message)
            case ResultMessage():
                self._result(message)
            case RateLimitEvent():
                if message.rate_limit_info.status != "allowed":
                    text = f"rate limit: {message.rate_limit_info.status}"
                    self.events.emit(LogData(stream="runner", text=text), self._turn_span)
            case _:
                pass

    def _system(self, message: SystemMessage) -> None:
        data = message.data
        match message.subtype:
            case "init":
                self._init(data)
            case "status":
                self.chats.status(self._agent(None), data.get("status"))
            case "api_retry":
                self._retry(data)
            case "permission_denied":
                self._denials[str(data.get("tool_use_id"))] = denier_of_reason(data.get("decision_reason_type"))
            case "background_tasks_changed":
                for task in self.background.update(data.get("tasks") or ()):
                    self._task_ended(task)
            case "session_state_changed":
                self.state = data.get("state")
                self.expects_own_turn = self.expects_own_turn and self.state != "idle"
            case _:
                pass

    def _init(self, data: dict[str, Any]) -> None:
        self.model = data.get("model") or self.model
        conversation = str(data.get("session_id") or "")
        self.spans.common["gen_ai.conversation.id"] = conversation
        self.spans.common.setdefault("session.id", conversation)
        span = self.turn.span if self.turn is not None else self._begin_own_turn()
        span.attributes.update({"gen_ai.conversation.id": conversation, "session.id": self.spans.common["session.id"]})
        if self.model:
            span.attributes.setdefault("gen_ai.request.model", self.model)
        if not self.started:
            self.started = True
            self.events.emit(start_data(data, self.resumed))
        self._emit_turn_start()
        self.chats.place_waiting()

    # -- model requests ---------------------------------------------------------------------------

    def _request_begun(self, agent: AgentState) -> None:
        if agent.turn is not None:
            agent.turn.requested = True
            self.on_request()

    def _retry(self, data: dict[str, Any]) -> None:
        agent = self._agent(None)
        status, attempt = data.get("error_status"), data.get("attempt")
        if self.turn is not None and isinstance(attempt, int):
            self.turn.given_up = self.turn.given_up or self.access.verdict(status, attempt)
        if agent is None:
            return
        failure = classify(status=status, label=data.get("error"), no_response=status is None or None)
        about = genai.retry(data, failure.error_type)
        # A status together with a problem is of the gateway, which did not reach the model.
        answered = f"answered {status}" if status and self.access.problem is None else "did not answer"
        delay = about.get("retry.delay_ms")
        is_last = self.turn is not None and self.turn.given_up is not None
        again = f"; again in {delay / 1000:.0f} s" if isinstance(delay, int | float) and not is_last else ""
        text = f"the model {answered} ({failure.error_type}), attempt {about.get('retry.attempt', '?')}{again}"
        self.events.emit(LogData(stream="runner", text=text), self.chats.retried(agent, about))

    def _find_place(self, agent_id: str | None, is_search: bool) -> RequestPlace | None:
        """Return the place of a model request; see `_gateway_chats.FindPlace`."""
        if agent_id is not None:
            caller = self.caller_of(agent_id)
            agent = self._agent(caller) if caller is not None else None
        elif self.turn is None and self._last_context is not None and not self.expects_own_turn:
            return RequestPlace(None, self._last_context)  # of a tool that still runs in the background
        else:
            agent = self._agents.get(None) if self.started else None
        if agent is None:
            return None
        if not is_search:
            return RequestPlace(agent, agent.span)
        searches = [
            call.span
            for call in self.tools.values()
            if call.name == "WebSearch" and call.span.parent_span_id == agent.span.span_id
        ]
        return RequestPlace(agent, searches[0] if len(searches) == 1 else agent.span)

    def _likely_trace(self) -> str | None:
        """Return the id of the trace of a request whose place is not known yet."""
        context = self._turn_span or self._last_context
        return context.trace_id if context is not None else None

    def _fall_back(self) -> None:
        """Make the spans of model requests from messages, as the CLI does not ask the gateway."""
        text = (
            "the CLI's model requests do not pass through the gateway, as its settings send them elsewhere: they are"
            " traced from the CLI's messages, without live text; an interrupt waits for the next message, and the"
            " gateway counts no costs. AGENT_GATEWAY=off avoids this"
        )
        self.events.emit(LogData(stream="runner", text=text), self._turn_span)
        self.chats = self._message_chats(partial=False)

    def _message_chats(self, *, partial: bool) -> MessageChats:
        return MessageChats(
            self.spans, self.events, self._content, lambda: self.model, self._request_begun, partial=partial
        )

    @property
    def _content(self) -> ContentSanitizer | None:
        if self.sanitize is None:
            return None
        return ContentSanitizer(self.sanitize, self.sanitize_tools, self.whole_requests, self._prompts)

    # -- messages of the model --------------------------------------------------------------------

    def _assistant(self, message: AssistantMessage) -> None:
        agent = self._agent(message.parent_tool_use_id)
        if agent is None:
            return
        if self.chats.is_bypassed:
            self._fall_back()
        if message.model == _SYNTHETIC:
            self._api_error(agent, message)
            return
        span = self.chats.answered(agent, message)
        for block in message.content:
            self._block(block, agent, message, span)

    def _block(self, block: object, agent: AgentState, message: AssistantMessage, span: Span) -> None:
        parent = message.parent_tool_use_id
        match block:
            case TextBlock():
                agent.text = block.text
                self.events.emit(
                    TextData(text=block.text, message_id=message.message_id, parent_tool_use_id=parent), span
                )
            case ThinkingBlock():
                self.events.emit(
                    ThinkingData(text=block.thinking, message_id=message.message_id, parent_tool_use_id=parent), span
                )
            case ToolUseBlock() | ServerToolUseBlock():
                self.tool(block.id, block.name, block.input, parent)
            case ToolResultBlock() | ServerToolResultBlock():
                failed = getattr(block, "is_error", None) is True
                self._tool_result(block.tool_use_id, block.content, failed, self.spans.clock())
            case _:
                pass

    def _api_error(self, agent: AgentState, message: AssistantMessage) -> None:
        text = "".join(block.text for block in message.content if isinstance(block, TextBlock))
        failure = classify(budget_spent=budget_spent_in(text), status=status_in(text), label=message.error, text=text)
        self.chats.failed(agent, failure, text)
        if agent.turn is None:
            agent.failure = failure
        else:
            agent.turn.error_type = failure.error_type

    # -- tools ------------------------------------------------------------------------------------

    def tool(self, tool_id: str, name: str, tool_input: dict[str, Any], parent_id: str | None = None) -> ToolCall:
        """Return a tool call; open its span and emit its event if it is new.

        The SDK may ask for its permission before the message with the call has been read.
        """
        if (tool := self.tools.get(tool_id)) is not None:
            return tool
        attributes = genai.execute_tool(tool_id, name, len(to_json(tool_input)))
        label = f"execute_tool {attributes['gen_ai.tool.name']}"
        span = self.spans.open_child(label, self._parent_span(parent_id), attributes)
        genai.set_arguments(span, tool_input, self.sanitize_tools)
        tool = self.tools[tool_id] = ToolCall(span, name, tool_input)
        self.on_call(tool_id, tool)
        if awaited := self._awaited.pop(tool_id, None):
            awaited.set()
        self.events.emit(
            ToolUseData(id=tool_id, name=name, input=tool_input, parent_tool_use_id=parent_id), span, opens=True
        )
        return tool

    async def wait_for_call(self, tool_id: str) -> None:
        """Wait for the message with a tool call, for at most `CALL_SECONDS`: its tool may be asked for before it."""
        if tool_id in self.tools:
            return
        awaited = self._awaited.setdefault(tool_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                await awaited.wait()

    def caller_of(self, agent_id: str | None) -> str | None:
        """Return the id of the tool call that started a subagent, or None."""
        return next((key for key, tool in self.tools.items() if agent_id and tool.task == agent_id), None)

    def executed(
        self, tool_id: str, duration_ms: float, tool_input: dict[str, Any], exit_code: int | None, output_size: int
    ) -> None:
        """Note the CLI's report on a tool that ran: its duration without waits, input, exit code and size of output."""
        tool = self.tools.get(tool_id)
        if tool is not None:
            tool.execution_ms, tool.exit_code, tool.output_size = duration_ms, exit_code, output_size
            tool.begun = tool.begun or self.spans.clock() - int(duration_ms * 1e6)
            differs = tool_input != tool.input and len(to_json(tool_input)) <= MAX_INPUT
            tool.executed_input = tool_input if differs else None

    def _user(self, message: UserMessage) -> None:
        agent, now = self._agent(message.parent_tool_use_id), self.spans.clock()
        if agent is not None:
            self.chats.asks_again(agent)
        if isinstance(message.content, list):
            for block in message.content:
                if isinstance(block, ToolResultBlock):
                    self._tool_result(block.tool_use_id, block.content, block.is_error is True, now)

    def _tool_result(self, tool_id: str, content: object, is_error: bool, now: int) -> None:
        tool = self.tools.get(tool_id)
        if tool is None or tool.result_seen:
            return
        tool.result_seen = True
        kept, size, truncated = bounded(content)
        if tool.output_size > size:
            # The CLI wrote the output to a file and gave the model only its beginning.
            size, truncated = tool.output_size, True
        span = tool.span
        elapsed_ms = (now - span.start) / 1e6 - tool.wait_ms
        duration = tool.execution_ms if tool.execution_ms is not None else max(0.0, elapsed_ms)
        genai.set_tool_outcome(span, size, is_error, tool.execution_ms, tool.wait_ms)
        if tool.begun is not None:
            queue_ms = (tool.begun - span.start) / 1e6 - tool.hooks_before.ms
            genai.set_delays(span, queue_ms, tool.hooks_before.ms + tool.hooks_after.ms)
        genai.set_tool_output(span, tool.name, kept, self.sanitize_tools)
        genai.set_exit_code(span, tool.exit_code)
        if tool.executed_input is not None:
            genai.set_executed(span, tool.executed_input, self.sanitize_tools)
        denied_by = self._denied_by(tool_id, tool, content) if is_error else None
        error_type = self._fail_tool(tool_id, tool, denied_by) if is_error else None
        self.events.emit(
            ToolResultData(
                tool_use_id=tool_id,
                content=kept,
                is_error=is_error,
                duration_ms=round(duration, 3),
                bytes=size,
                truncated=truncated,
                error_type=error_type,
                executed_input=tool.executed_input,
                exit_code=tool.exit_code,
                denied_by=denied_by,
            ),
            span,
        )
        if tool.task not in self.background.running:
            self._close_tool(tool_id, end=now)

    def _denied_by(self, tool_id: str, tool: ToolCall, content: object) -> DeniedBy | None:
        reported = self._denials.pop(tool_id, None)
        if tool.refusal is not None:
            return tool.denied_by
        text, ran = content if isinstance(content, str) else "", tool.execution_ms is not None
        return reported or denier_in_result(tool.name, text, ran=ran, disallowed=self.disallowed)

    def _fail_tool(self, tool_id: str, tool: ToolCall, denied_by: DeniedBy | None) -> ErrorType:
        """Mark the span of a call with an error as its result; return the error type."""
        agent = self._agents.get(tool_id)
        if agent is not None and agent.failure is not None:  # of a subagent's model request
            tool.span.fail(agent.failure.error_type, f"{tool.name}: the subagent's model request failed")
            return agent.failure.error_type
        interrupted = self.turn is not None and self.turn.interrupted
        how = tool.refusal or ("deny" if denied_by else "cancelled" if interrupted else "failed")
        error_type = classify(tool=how).error_type
        tool.span.fail(error_type, f"{tool.name}: {f'denied ({denied_by})' if denied_by else how}")
        genai.set_denied_by(tool.span, denied_by)
        return error_type

    def _close_tool(self, tool_id: str, *, end: int | None = None) -> None:
        tool = self.tools.pop(tool_id, None)
        agent = self._agents.pop(tool_id, None)
        if agent is not None:
            self._end_subagent(agent, tool, end)
        if tool is not None:
            self.spans.close(tool.span, end=end)

    def _end_subagent(self, agent: AgentState, tool: ToolCall | None, end: int | None) -> None:
        """End a subagent with the outcome of its call."""
        error_type = tool.span.error_type if tool is not None else None
        if tool is not None and error_type is not None:
            agent.span.fail(error_type, tool.span.error_message)
        self.chats.ended(agent, Failure(error_type, False) if error_type == "cancelled" else None)
        if agent.text:
            genai.set_output(agent.span, agent.text, None, self.sanitize)
        self.spans.close(agent.span, end=end)

    # -- tasks: subagents, and commands that take long ---------------------------------------------

    def _task_started(self, message: TaskStartedMessage) -> None:
        tool = self.tools.get(message.tool_use_id or "")
        if tool is None or message.tool_use_id is None:
            return
        tool.task = message.task_id
        if message.task_type == "local_agent":
            self._subagent(message.tool_use_id, tool, message.data.get("subagent_type"))
            self.chats.place_waiting()
        self._task_in_background(message.task_id)

    def _subagent(self, tool_id: str, tool: ToolCall, name: str | None = None) -> AgentState:
        """Return the subagent that a call started; if it is not known yet, open its span and report it."""
        agent = self._agents.get(tool_id)
        if agent is None:
            name = str(name or tool.input.get("subagent_type") or _DEFAULT_SUBAGENT)
            start, attributes = self.chats.waiting_since(tool.task), genai.invoke_subagent(name)
            span = self.spans.open_child(f"invoke_agent {brief(name)}", tool.span, attributes, start=start)
            self._set_prompt(span, str(tool.input.get("prompt") or ""))
            self.events.emit(
                SubagentStartData(tool_use_id=tool_id, agent_name=name, task_id=tool.task), span, opens=True
            )
            agent = self._agents[tool_id] = AgentState(span, boundary=span.start)
        return agent

    def _set_prompt(self, span: Span, prompt: str) -> None:
        genai.set_input(span, prompt, self.sanitize)
        if self.whole_requests:
            self._prompts.append(prompt.strip())

    def _task_in_background(self, task_id: str) -> None:
        """Report a task that has begun in the background or was moved there; its call's span stays open."""
        task = self.background.running.get(task_id)
        if task is None or task.tool_use_id is not None:
            return
        task.tool_use_id = next((key for key, tool in self.tools.items() if tool.task == task_id), None)
        if task.tool_use_id is not None:
            self.tools[task.tool_use_id].span.attributes["tool.background"] = True
        self._report_task(task, "running", self.spans.clock())

    def _report_task(self, task: RunningTask, state: TaskState, now: int) -> None:
        """Report a task's state; at its end, put its time, which includes that after the call's result, on the span."""
        tool = self.tools.get(task.tool_use_id or "")
        self.events.emit(task.data(state), tool.span if tool is not None else self._turn_span)
        if tool is not None and state != "running":
            ms = (now - tool.span.start) / 1e6 - tool.wait_ms
            tool.span.attributes["tool.execution_ms"] = round(max(0.0, ms), 3)

    def _task_ended(self, task: RunningTask) -> None:
        """Report the end of a background task, and end its call's span."""
        now = self.spans.clock()
        self._report_task(task, task.state, now)
        tool_id = task.tool_use_id or ""
        # The CLI then begins a turn of its own, or informs the model in the present turn.
        self.expects_own_turn |= task.state != "stopped"
        if (tool := self.tools.get(tool_id)) is None:
            return
        genai.set_exit_code(tool.span, task.exit_code)
        if task.state != "completed":
            agent = self._agents.get(tool_id)
            failure = classify(tool="failed" if task.state == "failed" else "cancelled")
            failure = agent.failure or failure if agent is not None else failure
            tool.span.fail(failure.error_type, f"{tool.name}: {task.state} in the background")
        if task.state == "stopped":
            for call in self._calls_of([task.id]):
                if call is not tool:
                    call.refusal = "cancelled"
                    call.span.fail("cancelled", f"{call.name}: cancelled")  # its result may not arrive any more
        if tool.result_seen:
            self._close_tool(tool_id, end=now)

    def _calls_of(self, tasks: Collection[str]) -> list[ToolCall]:
        """Return the calls that are these tasks, and at any depth the calls of their subagents."""
        found: list[ToolCall] = []
        subagents: set[str | None] = set()  # ids of their spans
        for tool_id, call in self.tools.items():  # a subagent's calls come after the call that started it
            if call.task in tasks or call.span.parent_span_id in subagents:
                found.append(call)
                if (agent := self._agents.get(tool_id)) is not None:
                    subagents.add(agent.span.span_id)
        return found

    # -- the end of a turn ------------------------------------------------------------------------

    def _result(self, message: ResultMessage) -> None:
        turn = self.turn
        if turn is None:
            return
        verdict = self._verdict(message, turn) if message.is_error else None
        failure = verdict.failure if verdict else _failure_of(message, turn) if message.is_error else None
        self._end_tools(turn, failure)
        agent = self._agents.pop(None, None)
        if agent is not None:
            self.chats.place_rest(agent.span)
            self.chats.ended(agent, failure)
        total = message.total_cost_usd if message.total_cost_usd is not None else self.cost_before
        cost, self.cost_before = max(0.0, total - self.cost_before), total
        usage = model_usage(message.model_usage or {})
        used, self.usage_before = used_since(usage, self.usage_before), {**self.usage_before, **usage}
        if failure is not None:
            text = verdict.message if verdict else "interrupted" if turn.interrupted else error_text(message)
            turn.span.fail(failure.error_type, text)
            if failure.error_type != "cancelled":
                data = ErrorData(error_type=failure.error_type, message=text, retryable=failure.retryable)
                self.events.emit(data, turn.span)
        genai.set_result(turn.span, message, cost)
        if message.result is not None:
            genai.set_output(turn.span, message.result, message.stop_reason, self.sanitize)
        error_type = failure.error_type if failure is not None else None
        shown = replace(message, result=verdict.message) if verdict else message
        self.events.emit(result_data(shown, turn.number, cost, total, used, error_type), turn.span)
        self._finish(turn, error_type)

    def _verdict(self, message: ResultMessage, turn: TurnState) -> ModelVerdict | None:
        """Return a better explanation than the CLI's own for a failed turn, or None."""
        if turn.interrupted:
            return None
        if turn.given_up is None and message.terminal_reason == "api_error":
            return self.access.final_verdict(message.api_error_status, error_text(message))
        return turn.given_up

    def _finish(self, turn: TurnState, error_type: ErrorType | None) -> None:
        self.spans.close(turn.span)
        self._last_context = TraceContext(turn.span.trace_id, turn.span.parent_span_id or "", 1, turn.span.tracestate)
        self.turn = None
        self.outcome.turns += 1
        self.outcome.interrupted |= error_type == "cancelled"
        self.outcome.failed |= error_type not in (None, "cancelled")

    def _end_tools(self, turn: TurnState, failure: Failure | None) -> None:
        """End the tool calls without a result, except those that run in the background."""
        error_type = "cancelled" if turn.interrupted else failure.error_type if failure else "internal"
        in_background = self._calls_of(self.background.running)
        for tool_id, tool in reversed(list(self.tools.items())):  # a subagent's calls before the subagent
            if tool not in in_background:
                tool.span.fail(error_type, "ended without a result")
                self._close_tool(tool_id)

    def abort(self, error_type: ErrorType, message: str) -> None:
        """End everything that is open as failed, as the CLI has ended or is about to."""
        for task in self.background.running.values():
            self._report_task(task, "stopped", self.spans.clock())
        self.background.running.clear()
        self.chats.place_rest(self._turn_span or self._last_context or self.spans.new_trace())
        self.chats.aborted(self._agents.values())
        for agent in self._agents.values():
            if agent.text:
                genai.set_output(agent.span, agent.text, "error", self.sanitize)
        self.spans.close_all(error_type, message)
        self.tools.clear()
        self._agents.clear()
        if self.turn is not None:
            self._finish(self.turn, error_type)

    # -- helpers ----------------------------------------------------------------------------------

    @property
    def _turn_span(self) -> Span | None:
        return self.turn.span if self.turn is not None else None

    def _agent(self, parent_id: str | None) -> AgentState | None:
        agent = self._agents.get(parent_id)
        if agent is None and parent_id is not None and (tool := self.tools.get(parent_id)):
            return self._subagent(parent_id, tool)
        return agent

    def _parent_span(self, parent_id: str | None) -> Span:
        agent = self._agent(parent_id) or self._agents.get(None)
        # A tool call outside of a turn begins one, so that it has a parent in the trace.
        return agent.span if agent is not None else self._begin_own_turn()


def _failure_of(message: ResultMessage, turn: TurnState) -> Failure:
    failure = classify(
        budget_spent=budget_spent_in(error_text(message)),
        subtype=message.subtype,
        reason="aborted_tools" if turn.interrupted else message.terminal_reason,
        status=message.api_error_status,
        text=error_text(message),
    )
    if failure.error_type == "internal" and turn.error_type is not None:
        return failure._replace(error_type=turn.error_type)
    return failure
