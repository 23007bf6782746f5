"""The changes of a session's state by events. Pure.

A list of sessions shows the state, and another process needs it to take the session over. It is written together with
the events that change it.
"""

from __future__ import annotations

from msgspec.structs import replace

from agent_runner.contract.protocol import (
    AgentChanged,
    AgentChangedData,
    AnyEvent,
    ApprovalRequest,
    ApprovalResolved,
    BackgroundTask,
    CommandResult,
    CommandResultData,
    QuestionRequest,
    QuestionResolved,
    Result,
    Start,
    TurnStart,
)
from host_client.store.base import Decision, SessionState, Status, WaitingRequest
from host_client.telemetry.costs.dollars import cost_of, total_usd

from ._events import AdoptedEvent, ClosedEvent, DroppedEvent, GapEvent, OwnEvent, PromptData, PromptEvent, SandboxEvent

QUESTION_TOOL = "AskUserQuestion"
CHANGING = (
    Start,
    TurnStart,
    ApprovalRequest,
    QuestionRequest,
    ApprovalResolved,
    QuestionResolved,
    BackgroundTask,
    CommandResult,
    AgentChanged,
    Result,
)
_MAX_MODEL = 200
"""Maximum length of a model's name, which a sandbox reports."""

_MAX_BACKGROUND = 100
"""Maximum number of background tasks in a state, and of characters of an id: a sandbox may invent any."""


def after_event(state: SessionState, event: AnyEvent, number: int) -> SessionState:
    """Return the state after an event of the runner with this number in the log; only events of `CHANGING` change it.

    The caller sets ``updated_at``, ``last_event_id`` and ``seen_seq``.
    """
    match event:
        case Start():
            data = event.data
            return _shown(replace(state, model=data.model, claude_session_id=data.session_id, started=True))
        case TurnStart():
            return _shown(replace(state, busy=True))
        case ApprovalRequest() | QuestionRequest():
            waiting = waiting_of(event, number)
            if any(each.id == waiting.id for each in state.waiting):  # a forged request, perhaps with another input
                return state
            return _shown(replace(state, waiting=(*state.waiting, waiting)))
        case ApprovalResolved():
            return _without(state, event.data.approval_id)
        case QuestionResolved():
            return _without(state, event.data.question_id)
        case BackgroundTask():
            task_id = event.data.task_id[:_MAX_BACKGROUND]
            others = tuple(each for each in state.background if each != task_id)
            running = event.data.state == "running"
            return replace(state, background=(*others, task_id)[-_MAX_BACKGROUND:] if running else others)
        case CommandResult(data=CommandResultData(command={"type": "set_model", "model": str(model)}, error=None)):
            return replace(state, model=model[:_MAX_MODEL])
        case AgentChanged(data=AgentChangedData(model=str(model))):
            return replace(state, model=model[:_MAX_MODEL])
        case Result():
            cost = total_usd(state.cost_usd, cost_of(event))
            return _shown(replace(state, busy=False, turns=state.turns + 1, cost_usd=cost))
        case _:
            return state


def after_own(state: SessionState, event: OwnEvent) -> SessionState:
    """Return the state after an event of the service."""
    match event:
        case PromptEvent(data=PromptData(error=str())):
            return state
        case PromptEvent():
            return _shown(replace(state, busy=True))
        case ClosedEvent():
            data = event.data
            return replace(
                state,
                status="failed" if data.error_type else "closed",
                closed_at=event.ts,
                close_reason=data.reason,
                error_type=data.error_type,
                waiting=(),
                background=(),
                busy=False,
            )
        case SandboxEvent() | AdoptedEvent() | GapEvent() | DroppedEvent():
            return state


def waiting_of(event: ApprovalRequest | QuestionRequest, number: int) -> WaitingRequest:
    """Return the waiting request that an event opens."""
    if isinstance(event, QuestionRequest):
        return WaitingRequest(
            id=event.data.question_id,
            kind="question",
            tool_name=QUESTION_TOOL,
            expires_at=event.data.expires_at,
            event_id=number,
        )
    return WaitingRequest(
        id=event.data.approval_id,
        kind="approval",
        tool_name=event.data.tool_name,
        expires_at=event.data.expires_at,
        input_sha256=event.data.input_sha256,
        event_id=number,
    )


def decision_in(event: AnyEvent) -> Decision | None:
    """Return the decision that an event reports, which may be a timeout; None for other events."""
    match event:
        case ApprovalResolved():
            key = event.data.approval_id
        case QuestionResolved():
            key = event.data.question_id
        case _:
            return None
    return Decision(request_id=key, decision=event.data.decision, decided_by=event.data.decided_by, decided_at=event.ts)


def _without(state: SessionState, key: str) -> SessionState:
    return _shown(replace(state, waiting=tuple(each for each in state.waiting if each.id != key)))


def _shown(state: SessionState) -> SessionState:
    """Return the state with its status, as a person is shown it."""
    status: Status = "needs_you" if state.waiting else "running" if state.busy else "idle"
    return replace(state, status=status if state.started else "starting")
