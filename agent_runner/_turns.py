"""Follow the turns of a conversation: their spans, results and costs, and whether the CLI begins one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from claude_agent_sdk import ResultMessage

from ._agents import Agents
from ._events import Events
from ._messages import Spent, error_text, model_usage, result_data, start_data, used_since
from ._model_access import ModelAccess, ModelVerdict
from ._state import RunOutcome, TurnState
from .contract import genai
from .contract.attachments import view_of
from .contract.classify import Failure, budget_spent_in, classify
from .contract.protocol import AgentChangedData, ErrorData, ErrorType, LogData, Prompt, TurnStartData
from .contract.spans import Span, Spans
from .contract.trace_context import TraceContext

_NO_OUTPUT = "the agent ended without the structured output that output_format asks for; its text is in the result"
_NO_OUTPUT_FAILURE = Failure("tool_error", retryable=True)


@dataclass(slots=True)
class Turns:
    """The turn that runs, if any, and the outcome and costs of those before."""

    events: Events
    spans: Spans
    agents: Agents
    access: ModelAccess
    resumed: bool
    sdk_options: Sequence[str]
    """Names of the options in the document with options of the SDK."""
    current: TurnState | None = None
    last_context: TraceContext | None = None
    """The context of the last turn's trace."""
    outcome: RunOutcome = field(default_factory=RunOutcome)
    spent: Spent = field(default_factory=lambda: Spent(0.0, {}))
    """The cost and usage of the conversation before the current turn."""
    started: bool = False
    """True when the agent has started and the ``start`` event was sent."""
    _settings: AgentChangedData = field(default_factory=AgentChangedData)
    """The model and the permission mode as the events have them."""
    own_expected: bool = False
    """True when a background task has ended, for which the CLI begins a turn."""
    on_begin: Callable[[Span], None] = lambda span: None
    """Called when a turn's span was opened."""
    _pending_start: TurnStartData | None = None

    @property
    def current_span(self) -> Span | None:
        """Return the span of the turn that runs."""
        return self.current.span if self.current is not None else None

    @property
    def context(self) -> Span | TraceContext | None:
        """Return the span of the turn that runs, or else the context of the last one."""
        return self.current_span or self.last_context

    @property
    def takes_prompts(self) -> bool:
        """Return whether a prompt can begin a turn: none is running, and the CLI is not about to begin its own."""
        return self.current is None and not self.own_expected

    def begin(
        self, parent: TraceContext, prompt: Prompt | None, span_id: str = "", user_message_id: str | None = None
    ) -> TurnState:
        """Open a turn's span. Its ``turn_start`` event waits for the ``start`` event of the first turn."""
        number = self.outcome.turns + 1
        attributes = genai.invoke_agent(self.agents.model, number)
        span = self.spans.open_root("agent.execute", parent, attributes, span_id)
        turn = self.current = TurnState(number, span, is_prompted=prompt is not None)
        self.agents.begin_main(turn, prompt)
        self.on_begin(turn.span)
        self._pending_start = TurnStartData(
            turn=number,
            prompt_size=len(prompt.text.encode("utf-8", "replace")) if prompt is not None else 0,
            user_message_id=user_message_id,
            attachments=[view_of(block) for block in prompt.content] if prompt is not None else [],
        )
        if self.started:
            self._emit_start(turn)
        return turn

    def begin_own(self) -> TurnState:
        """Begin a turn without a prompt, as the CLI does when a background task has ended."""
        self.own_expected = False
        return self.begin(self.last_context or self.spans.new_trace(), None)

    def _emit_start(self, turn: TurnState) -> None:
        if self._pending_start is not None:
            self.events.emit(self._pending_start, turn.span, opens=True)
        self._pending_start = None

    def take_init(self, data: dict[str, Any]) -> None:
        """Take the message with which the CLI begins each turn, ``system/init``."""
        model = self.agents.model = data.get("model") or self.agents.model
        conversation = str(data.get("session_id") or "")
        common = self.spans.common
        common["gen_ai.conversation.id"] = conversation
        common.setdefault("session.id", conversation)
        turn = self.current or self.begin_own()
        turn.span.attributes.update({"gen_ai.conversation.id": conversation, "session.id": common["session.id"]})
        if model:
            turn.span.attributes["gen_ai.request.model"] = model
        self.note_settings(model, data.get("permissionMode"))
        if not self.started:
            self.started = True
            self.events.emit(start_data(data, self.resumed, self.sdk_options))
        self._emit_start(turn)
        self.agents.chats.place_waiting()

    def note_settings(self, model: str | None, permission_mode: str | None) -> None:
        """Note the model and the permission mode, and report them if they change after the ``start`` event."""
        before = self._settings
        now = AgentChangedData(model=model or before.model, permission_mode=permission_mode or before.permission_mode)
        self._settings = now
        if self.started and now != before:
            self.events.emit(now, self.current_span)

    def take_retry(self, data: dict[str, Any]) -> None:
        """Report that the CLI repeats a model request, and note if that cannot succeed."""
        turn, agent = self.current, self.agents.main
        if turn is None or agent is None:
            return
        status, attempt = data.get("error_status"), data.get("attempt")
        if isinstance(attempt, int):
            turn.given_up = turn.given_up or self.access.verdict(status, attempt)
        failure = classify(status=status, label=data.get("error"), no_response=status is None or None)
        about = genai.retry(data, failure.error_type)
        # A status together with a problem is of the gateway, which did not reach the model.
        answered = f"answered {status}" if status and self.access.problem is None else "did not answer"
        delay = about.get("retry.delay_ms")
        again = f"; again in {delay / 1000:.0f} s" if isinstance(delay, int | float) and turn.given_up is None else ""
        text = f"the model {answered} ({failure.error_type}), attempt {about.get('retry.attempt', '?')}{again}"
        self.events.emit(LogData(stream="runner", text=text), self.agents.chats.retried(agent, about))

    def end(self, message: ResultMessage, end_calls: Callable[[ErrorType], None]) -> None:
        """End the turn with the CLI's result; ``end_calls`` ends the calls without a result as failed for a reason."""
        if (turn := self.current) is None:
            return
        verdict = self._verdict(message, turn) if message.is_error else None
        failure = verdict.failure if verdict else _failure_of(message, turn) if message.is_error else None
        if self._lacks_output(message, turn):
            failure, message = _NO_OUTPUT_FAILURE, replace(message, is_error=True, errors=[_NO_OUTPUT])
        error_type = failure.error_type if failure is not None else None
        end_calls("cancelled" if turn.interrupted else error_type or "internal")
        self.agents.end_main(failure)
        if failure is not None:
            text = verdict.message if verdict else "interrupted" if turn.interrupted else error_text(message)
            turn.span.fail(failure.error_type, text)
            if failure.error_type != "cancelled":
                data = ErrorData(error_type=failure.error_type, message=text, retryable=failure.retryable)
                self.events.emit(data, turn.span)
        if message.result is not None:
            genai.set_output(turn.span, message.result, message.stop_reason, self.agents.sanitize)
        self._report_result(replace(message, result=verdict.message) if verdict else message, turn, error_type)
        self.close(turn, error_type)

    def _lacks_output(self, message: ResultMessage, turn: TurnState) -> bool:
        """Return whether the model was asked and the CLI reports a success without the structured output."""
        is_asked_for = "output_format" in self.sdk_options and turn.is_prompted and turn.requested
        is_success = not turn.interrupted and not message.is_error
        return is_asked_for and is_success and message.structured_output is None

    def _verdict(self, message: ResultMessage, turn: TurnState) -> ModelVerdict | None:
        """Return a better explanation than the CLI's own for a failed turn, or None."""
        if turn.interrupted:
            return None
        if turn.given_up is None and message.terminal_reason == "api_error":
            return self.access.final_verdict(message.api_error_status, error_text(message))
        return turn.given_up

    def _report_result(self, message: ResultMessage, turn: TurnState, error_type: ErrorType | None) -> None:
        """Emit the ``result`` event with the turn's share of the conversation's cost and usage."""
        before = self.spent
        total = message.total_cost_usd if message.total_cost_usd is not None else before.cost
        usage = model_usage(message.model_usage or {})
        self.spent = Spent(total, {**before.usage, **usage})
        cost, used = max(0.0, total - before.cost), used_since(usage, before.usage)
        genai.set_result(turn.span, message, cost)
        self.events.emit(result_data(message, turn.number, cost, total, used, error_type), turn.span)

    def close(self, turn: TurnState, error_type: ErrorType | None) -> None:
        """End a turn's span, and add the turn to the outcome of the run."""
        self.spans.close(turn.span)
        self.last_context = TraceContext(turn.span.trace_id, turn.span.parent_span_id or "", 1, turn.span.tracestate)
        self.current = None
        self.outcome.turns += 1
        self.outcome.interrupted |= error_type == "cancelled"
        self.outcome.failed |= error_type not in (None, "cancelled")


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
