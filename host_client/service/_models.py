"""What the API takes and gives, as OpenAPI documents it. Times are seconds since the epoch, costs US dollars."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from agent_runner.contract.protocol import Approval
from agent_runner.contract.tools import PERMISSION_MODES
from host_client.store.base import Decision, Status, StoredSession

MAX_PROMPT = 200_000
MAX_NAMES = 200
MAX_METADATA = 50

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f,=]+$")]
Rule = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=r"\S")]
Label = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f,]*$")]
PermissionMode = Annotated[str, Field(json_schema_extra={"enum": list(PERMISSION_MODES)})]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CreateSession(_StrictModel):
    """A new session and its first turn."""

    prompt: Text
    user_id: Name | None = None
    tenant_id: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None
    user_tier: Name | None = None
    model: Name | None = None
    allowed_tools: Annotated[list[Rule], Field(max_length=MAX_NAMES, description="These need no approval.")] = []
    disallowed_tools: Annotated[list[Rule], Field(max_length=MAX_NAMES)] = []
    permission_mode: PermissionMode = "default"
    max_turns: Annotated[int | None, Field(gt=0, le=10_000)] = None
    max_budget_usd: Annotated[float | None, Field(gt=0, le=100_000)] = None
    system_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    approval_timeout: Annotated[float, Field(gt=0, le=86_400, description="Seconds a person has to answer.")] = 300.0
    metadata: Annotated[
        dict[Name, Label], Field(max_length=MAX_METADATA, description="On every span, and listed with the session.")
    ] = {}


class SendTurn(_StrictModel):
    """The next turn; it begins when the current one has ended."""

    text: Text


class Decide(_StrictModel):
    """A person's decision on one call, bound to the input that was shown."""

    decision: Literal["allow", "deny"]
    input_sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$", description="Required to allow.")] = None
    updated_input: Annotated[dict[str, Any] | None, Field(description="Run the call with this input instead.")] = None
    remember: Annotated[bool, Field(description="Allow what the request's suggestions describe from now on.")] = False
    message: Annotated[str | None, Field(max_length=10_000, description="What the agent is told of a denial.")] = None
    decided_by: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None


class AnswerQuestion(_StrictModel):
    """Answers by the question's whole text: a label, several, or free text."""

    answers: Annotated[dict[str, str | list[str]], Field(min_length=1, max_length=100)]
    decided_by: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None


class WaitingView(BaseModel):
    """What waits for a person."""

    id: str
    kind: Literal["approval", "question"]
    tool_name: str
    expires_at: float
    input_sha256: Annotated[str | None, Field(description="Of an approval: to be sent with what allows it.")]
    event_id: Annotated[int, Field(description="The number of the event that asks, with all that is asked.")]


class SandboxView(BaseModel):
    """Where the session runs."""

    id: str
    kind: str


class SessionView(BaseModel):
    """A session as it is now."""

    id: str
    tenant_id: str
    user_id: str | None
    title: str
    status: Status
    created_at: float
    updated_at: float
    closed_at: float | None
    model: str | None
    cost_usd: float
    max_budget_usd: float | None
    turns: int
    waiting: list[WaitingView]
    last_event_id: int
    trace_id: str
    trace_url: str | None
    sandbox: SandboxView | None
    metadata: dict[str, str]
    close_reason: str | None
    error_type: str | None


class SessionPage(BaseModel):
    """Sessions, newest first; ``next`` goes into ``before``."""

    sessions: list[SessionView]
    next: str | None


class TurnView(BaseModel):
    """A turn that was taken."""

    turn_id: str
    session_id: str
    trace_id: str


class DecisionView(BaseModel):
    """Who decided what, and when."""

    request_id: str
    decision: str
    decided_by: str | None
    decided_at: float


class LoggedEvent(BaseModel):
    """One event of a log under its number."""

    id: int
    event: dict[str, Any]


class LogPage(BaseModel):
    """Part of a log; ``next`` goes into ``after``, ``first`` is the oldest number that is kept."""

    events: list[LoggedEvent]
    next: int | None
    first: int


def session_view(stored: StoredSession, trace_url: str | None) -> SessionView:
    """Return a session as the API shows it; ``trace_url`` may hold ``{trace_id}``."""
    record, state = stored
    trace_id = record.root.trace_id
    return SessionView(
        id=record.id,
        tenant_id=record.tenant_id,
        user_id=record.request.get("user_id"),
        title=record.title,
        status=state.status,
        created_at=record.created_at,
        updated_at=state.updated_at,
        closed_at=state.closed_at,
        model=state.model,
        cost_usd=state.cost_usd,
        max_budget_usd=record.request.get("max_budget_usd"),
        turns=state.turns,
        waiting=[WaitingView(**msgspec.structs.asdict(each)) for each in state.waiting],
        last_event_id=state.last_event_id,
        trace_id=trace_id,
        trace_url=trace_url.replace("{trace_id}", trace_id) if trace_url else None,
        sandbox=SandboxView(id=state.sandbox.id, kind=state.sandbox.kind) if state.sandbox else None,
        metadata=record.request.get("metadata") or {},
        close_reason=state.close_reason,
        error_type=state.error_type,
    )


def decision_view(decision: Decision) -> DecisionView:
    """Return a decision as the API shows it."""
    return DecisionView(
        request_id=decision.request_id,
        decision=decision.decision,
        decided_by=decision.decided_by,
        decided_at=decision.decided_at,
    )


def approval_of(approval_id: str, body: Decide, by: str) -> Approval:
    """Return the decision that a body states, made by this person."""
    return Approval(approval_id=approval_id, decided_by=by, **body.model_dump(exclude={"decided_by"}))
