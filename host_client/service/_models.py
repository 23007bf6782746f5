"""Bodies of the API's requests and answers. Times are seconds since the epoch, costs US dollars."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_runner.contract.attachments import MAX_ATTACHMENTS
from agent_runner.contract.protocol import Approval
from agent_runner.contract.tools import PERMISSION_MODES
from host_client.store.base import Decision, Status, StoredSession

MAX_PROMPT = 200_000
MAX_NAMES = 200
MAX_METADATA = 50

_NAME = r"^[^\x00-\x1f\x7f,=]+$"
_RULE = r"^[^\x00-\x1f\x7f]+$"
_TEXT = r"\S"
_LABEL = r"^[^\x00-\x1f\x7f,]*$"
_SHA256 = "^[0-9a-f]{64}$"
_FILE_ID = "^[0-9a-f-]{36}$"
PATTERN_WORDS = {
    _NAME: "must contain no comma, equals sign or control character",
    _RULE: "must contain no control character",
    _TEXT: "must contain more than white space",
    _LABEL: "must contain no comma or control character",
    _SHA256: "must be a SHA-256 of 64 lower-case hexadecimal digits",
    _FILE_ID: "must be the file_id of an upload",
}
"""The patterns in words, for error messages."""

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=_NAME)]
Rule = Annotated[str, Field(min_length=1, max_length=500, pattern=_RULE)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=_TEXT)]
Label = Annotated[str, Field(max_length=500, pattern=_LABEL)]
PermissionMode = Annotated[str, Field(json_schema_extra={"enum": list(PERMISSION_MODES)})]


class StrictModel(BaseModel):
    """A body without unknown fields and without conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AttachmentBody(StrictModel):
    """An image, a PDF or a UTF-8 text in a prompt: its content in base64, or a file that was uploaded before."""

    data: str | None = None
    name: Annotated[
        str | None, Field(max_length=1000, description="Of `data`; the model is shown a document's name.")
    ] = None
    file_id: Annotated[str | None, Field(pattern=_FILE_ID, description="Of `POST /api/files`.")] = None

    @model_validator(mode="after")
    def _check_content(self) -> AttachmentBody:
        if (self.data is None) == (self.file_id is None):
            raise ValueError("must have either data or file_id")
        if self.file_id is not None and self.name is not None:
            raise ValueError("an uploaded file has its name already")
        return self


Attachments = Annotated[list[AttachmentBody], Field(max_length=MAX_ATTACHMENTS)]


class FileView(BaseModel):
    """A file that was uploaded, for prompts until ``expires_at``."""

    file_id: str
    media_type: str
    size: int
    name: str | None
    expires_at: float


class ExtendedPrompt(StrictModel):
    """Claude Code's own system prompt, with a text after it."""

    type: Literal["preset"]
    preset: Literal["claude_code"]
    append: Annotated[str, Field(max_length=MAX_PROMPT)]


class CreateSession(StrictModel):
    """A new session and its first turn."""

    prompt: Text
    attachments: Attachments = []
    user_id: Name | None = None
    tenant_id: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None
    user_tier: Name | None = None
    model: Name | None = None
    allowed_tools: Annotated[list[Rule], Field(max_length=MAX_NAMES, description="Tools that need no approval.")] = []
    disallowed_tools: Annotated[list[Rule], Field(max_length=MAX_NAMES)] = []
    permission_mode: PermissionMode = "default"
    max_turns: Annotated[int | None, Field(gt=0, le=10_000)] = None
    max_budget_usd: Annotated[float | None, Field(gt=0, le=100_000)] = None
    system_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | ExtendedPrompt | None = None
    approval_timeout: Annotated[float, Field(gt=0, le=86_400, description="Seconds that a person has to decide.")] = (
        300.0
    )
    options: Annotated[
        dict[str, Any],
        Field(description="Further options of the Claude Agent SDK, under its names, which the service allows."),
    ] = {}
    metadata: Annotated[
        dict[Name, Label],
        Field(max_length=MAX_METADATA, description="Attributes of every span; also listed with the session."),
    ] = {}


class SendTurn(StrictModel):
    """The next turn, which begins when the current one has ended."""

    text: Text
    attachments: Attachments = []


class Decide(StrictModel):
    """A person's decision on one tool call, bound to the input that was shown."""

    decision: Literal["allow", "deny"]
    input_sha256: Annotated[str | None, Field(pattern=_SHA256, description="Required to allow.")] = None
    updated_input: Annotated[dict[str, Any] | None, Field(description="Run the call with this input instead.")] = None
    remember: Annotated[
        bool, Field(description="Also allow, from now on, all that the request's suggestions describe.")
    ] = False
    message: Annotated[str | None, Field(max_length=10_000, description="Reason for a denial, for the agent.")] = None
    decided_by: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None


class AnswerQuestion(StrictModel):
    """Answers to questions, by the question's whole text: a label, several labels, or free text."""

    answers: Annotated[dict[str, str | list[str]], Field(min_length=1, max_length=100)]
    decided_by: Annotated[Name | None, Field(description="Only where the service asks for no token.")] = None


class WaitingView(BaseModel):
    """An approval or question that waits for a person."""

    id: str
    kind: Literal["approval", "question"]
    tool_name: str
    expires_at: float
    input_sha256: Annotated[
        str | None, Field(description="Of an approval: to be sent back with a decision that allows it.")
    ]
    event_id: Annotated[int, Field(description="Number of the event with the whole request.")]


class SandboxView(BaseModel):
    """The sandbox of a session."""

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
    """Sessions, newest first; ``next`` is the value of ``before`` for the next page."""

    sessions: list[SessionView]
    next: str | None


class TurnView(BaseModel):
    """A turn that was queued."""

    turn_id: str
    session_id: str
    trace_id: str


class DecisionView(BaseModel):
    """The decision on an approval or question."""

    request_id: str
    decision: str
    decided_by: str | None
    decided_at: float


class LoggedEvent(BaseModel):
    """One event of a log, and its number."""

    id: int
    event: dict[str, Any]


class LogPage(BaseModel):
    """Part of a log. ``next`` is the value of ``after`` for the next part, ``first`` the oldest number in the log."""

    events: list[LoggedEvent]
    next: int | None
    first: int


def session_view(stored: StoredSession, trace_url: str | None) -> SessionView:
    """Return a session as the API shows it; ``{trace_id}`` in ``trace_url`` is replaced."""
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
        sandbox=SandboxView(**msgspec.structs.asdict(state.sandbox)) if state.sandbox else None,
        metadata=record.request.get("metadata") or {},
        close_reason=state.close_reason,
        error_type=state.error_type,
    )


def decision_view(decision: Decision) -> DecisionView:
    """Return a decision as the API shows it."""
    return DecisionView(**msgspec.structs.asdict(decision))


def approval_of(approval_id: str, body: Decide, by: str) -> Approval:
    """Return the decision in a body, made by a person, as the runner takes it."""
    return Approval(approval_id=approval_id, decided_by=by, **body.model_dump(exclude={"decided_by"}))
