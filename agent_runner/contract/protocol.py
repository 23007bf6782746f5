"""Events that a runner writes and commands that it reads, one JSON object a line.

A reader of events needs this module alone, which imports nothing heavy. Version 1 only adds fields and types; a reader
skips event types and fields that it does not know. Times are in seconds since the epoch, durations in milliseconds,
sizes in bytes. Trace and span ids are lower-case hex, as in W3C Trace Context.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_type_hints

import msgspec

from . import attachments
from .attachments import AttachedBlock, AttachmentView
from .tools import PermissionMode

PROTOCOL_VERSION = 1

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Maximum length of a line in both directions; a reader may drop a longer line."""

ErrorType = Literal[
    "timeout",
    "out_of_memory",
    "network",
    "authentication",
    "rate_limit",
    "billing",
    "overloaded",
    "invalid_request",
    "permission_denied",
    "approval_timeout",
    "budget_exceeded",
    "max_turns",
    "tool_error",
    "sandbox",
    "cli_crash",
    "protocol",
    "cancelled",
    "internal",
]
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)

Decision = Literal["allow", "allow_edited", "deny", "timeout", "cancelled"]

DeniedBy = Literal["approval", "rule", "mode", "hook", "configuration", "runner", "cli"]
"""Who denied a tool call: the outcome of an approval request, a permission rule, the permission mode, a hook, a
configuration that does not offer the tool, the runner, or Claude Code for another reason."""

EndReason = Literal["completed", "stopped", "interrupted", "terminated", "failed", "misconfigured"]

CallbackKind = Literal["tool", "hook"]
CallbackOutcome = Literal["returned", "failed", "timeout", "cancelled", "no_host"]

TaskState = Literal["running", "completed", "failed", "stopped"]

EXIT_CODES: dict[int, str] = {
    0: "every turn ended well",
    1: "the agent ended in an error",
    2: "bad configuration",
    3: "the CLI or SDK failed",
    129: "hung up",
    130: "interrupted",
    143: "terminated",
}


TraceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
SpanId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ExitCode = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Timestamp = Annotated[float, msgspec.Meta(ge=0, le=9e9)]
"""Seconds since the epoch, at most so many that the nanoseconds fit into OTLP's 64 bits."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the data of events. A field with its default value is omitted on the wire."""


class StartData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent has started: Claude's session id, its model, tools, directory and permission mode.

    ``sdk_options`` are the names of the options that were set in the document with options of the SDK, ``commands`` the
    types of the commands that this runner knows. A runner without ``takes_attachments`` is older than attachments, and
    sends only the text of a prompt.
    """

    session_id: str
    model: str
    tools: list[str]
    cwd: str
    permission_mode: str
    resumed: bool
    runner_version: str
    sdk_options: list[str] = []
    commands: list[str] = []
    takes_attachments: bool = False


class TurnStartData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A turn begins. ``prompt_size`` is of its text, in bytes, and 0 for a turn that the CLI began by itself.

    ``user_message_id`` is the prompt's UUID in the conversation, which `RewindFiles` takes.
    """

    turn: Size
    prompt_size: Size
    user_message_id: str | None = None
    attachments: list[AttachmentView] = []


class TextDeltaData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of the model's text while it is generated. It has no seq and is not in the journal."""

    text: str
    message_id: str | None = None


class TextData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A complete text block of the model's answer."""

    text: str
    message_id: str | None = None
    parent_tool_use_id: str | None = None


class ThinkingData(TextData, frozen=True, kw_only=True, omit_defaults=True):
    """A complete thinking block of the model's answer."""


class ToolUseData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The model calls a tool. If a subagent does, ``parent_tool_use_id`` is the id of the call that started it."""

    id: str
    name: str
    input: dict[str, Any]
    parent_tool_use_id: str | None = None


class ToolResultData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call ended. ``bytes`` is the size of the whole result, ``content`` may be cut (``truncated``).

    ``executed_input`` is the input that the tool ran with, if a person, a hook or the CLI changed the model's.
    ``exit_code`` is that of a command in Bash, where the CLI reports it.
    """

    tool_use_id: str
    content: Any
    is_error: bool
    duration_ms: float
    bytes: Size
    truncated: bool = False
    error_type: ErrorType | None = None
    executed_input: dict[str, Any] | None = None
    exit_code: ExitCode | None = None
    denied_by: DeniedBy | None = None


class ApprovalRequestData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call waits for a person's decision. ``input_sha256`` is the digest of the input (see `input_digest`).

    ``reason`` is the best of the CLI's texts to show. The fields after ``suggestions`` are those of the SDK's
    `ToolPermissionContext`.
    """

    approval_id: str
    tool_use_id: str
    tool_name: str
    input: dict[str, Any]
    input_sha256: str
    expires_at: float
    reason: str | None = None
    suggestions: list[dict[str, Any]] = []
    agent_id: str | None = None
    blocked_path: str | None = None
    decision_reason: str | None = None
    title: str | None = None
    display_name: str | None = None
    description: str | None = None


class ApprovalResolvedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """An approval request was decided, or ended without a decision.

    Of an allowed call, ``input_sha256`` is the digest of the allowed input, and ``updated_input`` is that input if a
    person edited it. ``remembered`` says that the suggested rules now allow such calls for the rest of the session.
    """

    approval_id: str
    tool_use_id: str
    decision: Decision
    wait_ms: float
    decided_by: str | None = None
    updated_input: dict[str, Any] | None = None
    input_sha256: str | None = None
    remembered: bool = False


class QuestionRequestData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent asks a person (the tool AskUserQuestion); ``questions`` is from the tool's input."""

    question_id: str
    tool_use_id: str
    questions: list[dict[str, Any]]
    expires_at: float


class QuestionResolvedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A question was answered, or ended without an answer: then ``answers`` is None and ``decision`` says why."""

    question_id: str
    answers: dict[str, Any] | None
    decision: Literal["answered", "timeout", "cancelled", "deny"]
    wait_ms: float
    decided_by: str | None = None


class SubagentStartData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call started a subagent, which ends with the call, or with its task if that runs in the background.

    ``agent_name`` is the subagent's type. The event's ``parent_span_id`` is the id of the call's span.
    """

    tool_use_id: str
    agent_name: str
    task_id: str | None = None


class BackgroundTaskData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A command or subagent runs in the background, or has ended there; a turn does not wait for it.

    ``kind`` is the CLI's name for it, such as ``local_bash`` or ``local_agent``. ``tool_use_id`` is the id of the call
    that started it, whose span is open until the task ends. ``exit_code`` is that of an ended command.
    """

    task_id: str
    kind: str
    state: TaskState
    description: str
    tool_use_id: str | None = None
    exit_code: ExitCode | None = None


class ResultData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A turn ended. ``cost_usd`` is the cost of this turn, ``total_cost_usd`` that of the conversation so far.

    ``turn_model_usage`` has the tokens and the ``costUSD`` of this turn by model, ``model_usage`` those of the
    conversation so far. ``structured_output`` is the answer in the form of the option ``output_format``.
    """

    turn: int
    result: str | None
    is_error: bool
    subtype: str
    cost_usd: float
    total_cost_usd: float
    duration_ms: float
    duration_api_ms: float
    num_turns: int
    usage: dict[str, Any]
    model_usage: dict[str, Any]
    session_id: str
    turn_model_usage: dict[str, dict[str, float]] = {}
    error_type: ErrorType | None = None
    structured_output: Any = None


class CallbackRequestData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A tool or hook whose function runs on the host is called; a `CallbackResponse` answers it.

    ``name`` is that of a tool of the MCP server ``server``, or a hook's id (see `contract.callbacks`), ``input`` the
    tool's arguments or the hook's input. The event's span is that of the tool call or of the turn. ``callback_id`` is
    the same however often the request is read: a key with which the host can make a repeated call harmless.
    """

    callback_id: str
    kind: CallbackKind
    name: str
    input: dict[str, Any]
    expires_at: float
    server: str | None = None
    tool_use_id: str | None = None


class CallbackResolvedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The host has answered a `CallbackRequest`, or the runner waits no longer.

    ``outcome`` is ``returned``, ``failed`` (the function raised an error), ``timeout``, ``cancelled`` (by an interrupt
    or by the CLI) or ``no_host``.
    """

    callback_id: str
    outcome: CallbackOutcome
    wait_ms: float


class CliMessageData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A message of Claude Code as it is, if they were asked for (``AGENT_MESSAGES``), before the events made from it.

    The first is the answer to the SDK's control request ``initialize``; the SDK parses the others.
    """

    message: dict[str, Any]


class CommandResultData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A command that changes or asks a running agent (a `ControlCommand`) was carried out, or failed with ``error``.

    ``command`` has the command's type and fields, ``value`` the answer to a question.
    """

    command: dict[str, Any]
    command_id: str | None = None
    error: str | None = None
    value: Any = None


class AgentChangedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent has another model or permission mode than before: by a command, an approval, or its own decision."""

    model: str | None = None
    permission_mode: str | None = None


class HeartbeatData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The runner is alive, and there was no event for some seconds. It has no seq and is not in the journal.

    ``silent_ms`` is the time since the last event and ``last_seq`` its seq, so a reader that has not got it knows that
    the stream has lost events. ``tool_use_ids`` are the calls that have not ended.
    """

    silent_ms: float
    last_seq: Size
    tool_use_ids: list[str]


class ErrorData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """Something failed. ``retryable`` says whether a retry may succeed."""

    error_type: ErrorType
    message: str
    retryable: bool = False


class LogData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the CLI's stderr, or a remark of the runner or of its telemetry."""

    stream: Literal["stderr", "runner", "telemetry"]
    text: str


class TelemetryData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """Finished spans, as the base64 of an OTLP ``ExportTraceServiceRequest``."""

    otlp: str


class EndData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The runner ends. This is always the last event. ``unfinished`` describes the background tasks that it ended."""

    reason: EndReason
    exit_code: int
    unfinished: list[str] = []


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The envelope of an event. ``seq`` starts at 1 and has no gaps; those of `LIVE` have none.

    ``trace_id`` and ``span_id`` name the span that the event belongs to. An event that opens a span also has
    ``parent_span_id``, so that a reader can end spans that a dead runner left open.
    """

    v: Literal[1]
    ts: Timestamp
    trace_id: TraceId
    span_id: SpanId
    seq: int | None = None
    parent_span_id: SpanId | None = None

    @property
    def type(self) -> str:
        """Return the event's type as it is on the wire."""
        return str(self.__struct_config__.tag)


class Start(Event, frozen=True, kw_only=True, tag="start"):
    data: StartData


class TurnStart(Event, frozen=True, kw_only=True, tag="turn_start"):
    data: TurnStartData


class TextDelta(Event, frozen=True, kw_only=True, tag="text_delta"):
    data: TextDeltaData


class Text(Event, frozen=True, kw_only=True, tag="text"):
    data: TextData


class Thinking(Event, frozen=True, kw_only=True, tag="thinking"):
    data: ThinkingData


class ToolUse(Event, frozen=True, kw_only=True, tag="tool_use"):
    data: ToolUseData


class ToolResult(Event, frozen=True, kw_only=True, tag="tool_result"):
    data: ToolResultData


class ApprovalRequest(Event, frozen=True, kw_only=True, tag="approval_request"):
    data: ApprovalRequestData


class ApprovalResolved(Event, frozen=True, kw_only=True, tag="approval_resolved"):
    data: ApprovalResolvedData


class QuestionRequest(Event, frozen=True, kw_only=True, tag="question_request"):
    data: QuestionRequestData


class QuestionResolved(Event, frozen=True, kw_only=True, tag="question_resolved"):
    data: QuestionResolvedData


class SubagentStart(Event, frozen=True, kw_only=True, tag="subagent_start"):
    data: SubagentStartData


class BackgroundTask(Event, frozen=True, kw_only=True, tag="task"):
    data: BackgroundTaskData


class Result(Event, frozen=True, kw_only=True, tag="result"):
    data: ResultData


class CallbackRequest(Event, frozen=True, kw_only=True, tag="callback_request"):
    data: CallbackRequestData


class CallbackResolved(Event, frozen=True, kw_only=True, tag="callback_resolved"):
    data: CallbackResolvedData


class CliMessage(Event, frozen=True, kw_only=True, tag="message"):
    data: CliMessageData


class CommandResult(Event, frozen=True, kw_only=True, tag="command_result"):
    data: CommandResultData


class AgentChanged(Event, frozen=True, kw_only=True, tag="agent_changed"):
    data: AgentChangedData


class Heartbeat(Event, frozen=True, kw_only=True, tag="heartbeat"):
    data: HeartbeatData


class Error(Event, frozen=True, kw_only=True, tag="error"):
    data: ErrorData


class Log(Event, frozen=True, kw_only=True, tag="log"):
    data: LogData


class TelemetryEvent(Event, frozen=True, kw_only=True, tag="telemetry"):
    data: TelemetryData


Telemetry = TelemetryEvent
"""The public name of the class, in `host_client.events`."""


class End(Event, frozen=True, kw_only=True, tag="end"):
    data: EndData


AnyEvent = (
    Start
    | TurnStart
    | TextDelta
    | Text
    | Thinking
    | ToolUse
    | ToolResult
    | ApprovalRequest
    | ApprovalResolved
    | QuestionRequest
    | QuestionResolved
    | SubagentStart
    | BackgroundTask
    | Result
    | CallbackRequest
    | CallbackResolved
    | CliMessage
    | CommandResult
    | AgentChanged
    | Heartbeat
    | Error
    | Log
    | TelemetryEvent
    | End
)
EventData = (
    StartData
    | TurnStartData
    | TextDeltaData
    | TextData
    | ThinkingData
    | ToolUseData
    | ToolResultData
    | ApprovalRequestData
    | ApprovalResolvedData
    | QuestionRequestData
    | QuestionResolvedData
    | SubagentStartData
    | BackgroundTaskData
    | ResultData
    | CallbackRequestData
    | CallbackResolvedData
    | CliMessageData
    | CommandResultData
    | AgentChangedData
    | HeartbeatData
    | ErrorData
    | LogData
    | TelemetryData
    | EndData
)

LIVE = (TextDelta, Heartbeat)
"""The events without a seq: they are for a reader of the stream, and are not in the journal."""

EVENT_TYPES: dict[str, type[AnyEvent]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyEvent)}
_EVENT_OF: dict[type[EventData], type[AnyEvent]] = {get_type_hints(kind)["data"]: kind for kind in EVENT_TYPES.values()}


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The envelope of a command, which a host writes to the runner's stdin.

    The runner ignores a second command with the same ``command_id``, so a host may resend a command when it does not
    know whether the first one arrived.
    """

    MAX_BYTES: ClassVar[int] = MAX_LINE_BYTES

    command_id: str | None = None

    @property
    def type(self) -> str:
        """Return the command's type as it is on the wire."""
        return str(self.__struct_config__.tag)


class Prompt(Command, frozen=True, kw_only=True, tag="prompt"):
    """Begin a turn. ``content`` are images and documents, which come before the text.

    With ``traceparent`` the turn's span is a child of that span.
    """

    text: str
    content: tuple[AttachedBlock, ...] = ()
    traceparent: str | None = None
    tracestate: str | None = None

    def __post_init__(self) -> None:
        """Refuse more attachments than a prompt may have."""
        attachments.check(self.content)


class Approval(Command, frozen=True, kw_only=True, tag="approval"):
    """Decide an `ApprovalRequest`, once. If ``input_sha256`` is given, it must be equal to the request's.

    ``remember`` accepts the request's suggestions for the session. ``updated_permissions`` are updates in the SDK's
    form, in their place; ``interrupt`` of a denial also ends the turn.
    """

    approval_id: str
    decision: Literal["allow", "deny"]
    message: str | None = None
    updated_input: dict[str, Any] | None = None
    remember: bool = False
    decided_by: str | None = None
    input_sha256: str | None = None
    updated_permissions: list[dict[str, Any]] | None = None
    interrupt: bool = False


class Answer(Command, frozen=True, kw_only=True, tag="answer"):
    """Answer a `QuestionRequest`: ``answers`` maps a question's whole text to the chosen label or to free text.

    For any other key the runner emits an `Error` of type ``protocol``, and the question remains open. With ``refusal``
    the agent gets that text in place of answers; ``interrupt`` then also ends the turn.
    """

    question_id: str
    answers: dict[str, Any]
    decided_by: str | None = None
    refusal: str | None = None
    interrupt: bool = False


class CallbackResponse(Command, frozen=True, kw_only=True, tag="callback_response"):
    """Answer a `CallbackRequest`, once.

    ``result`` of a tool has ``content``, a list of MCP's blocks, and may have ``is_error``; that of a hook is its
    output in the SDK's form. With ``error`` the function failed: the model receives the text as a tool's error, and a
    hook has no effect.
    """

    callback_id: str
    result: dict[str, Any] = {}
    error: str | None = None


class Interrupt(Command, frozen=True, kw_only=True, tag="interrupt"):
    """End the current turn, or between turns all background tasks; the conversation continues."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """End the current turn, then the runner."""


class Finish(Command, frozen=True, kw_only=True, tag="finish"):
    """End the runner when all turns and background tasks have ended: no more prompts follow. Replies still count."""


Label = Annotated[str, msgspec.Meta(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A name or an id."""


class ControlCommand(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the commands that change or ask a running agent; a `CommandResult` answers each.

    They are carried out at once, also during a turn. What changes the agent is done before the prompts after it.
    """

    requested_by: str | None = None


class SetModel(ControlCommand, frozen=True, kw_only=True, tag="set_model"):
    """Use another model from the next model request on; without ``model`` the CLI's default."""

    model: Label | None = None


class SetPermissionMode(ControlCommand, frozen=True, kw_only=True, tag="set_permission_mode"):
    """Change the permission mode. ``bypassPermissions`` is refused in a run that did not begin with it."""

    mode: PermissionMode


class StopTask(ControlCommand, frozen=True, kw_only=True, tag="stop_task"):
    """Stop a command or subagent, by the ``task_id`` of its `BackgroundTask` or `SubagentStart`."""

    task_id: Label


class RewindFiles(ControlCommand, frozen=True, kw_only=True, tag="rewind_files"):
    """Restore the files that the agent's tools changed to their state before a prompt; see `TurnStartData`.

    The option ``enable_file_checkpointing`` must be set. The conversation stays as it is.
    """

    user_message_id: Label


class ReconnectMcpServer(ControlCommand, frozen=True, kw_only=True, tag="reconnect_mcp_server"):
    """Connect again to an MCP server that has failed."""

    server_name: Label


class ToggleMcpServer(ControlCommand, frozen=True, kw_only=True, tag="toggle_mcp_server"):
    """Disconnect an MCP server and remove its tools, or connect to it again."""

    server_name: Label
    enabled: bool


class GetMcpStatus(ControlCommand, frozen=True, kw_only=True, tag="get_mcp_status"):
    """Ask for the MCP servers: a list of objects with ``name``, ``status``, ``error`` and ``tools``."""


class GetContextUsage(ControlCommand, frozen=True, kw_only=True, tag="get_context_usage"):
    """Ask for the use of the model's context: ``totalTokens``, ``maxTokens``, ``percentage``, ``categories``."""


AnyControl = (
    SetModel
    | SetPermissionMode
    | StopTask
    | RewindFiles
    | ReconnectMcpServer
    | ToggleMcpServer
    | GetMcpStatus
    | GetContextUsage
)
AnyCommand = Prompt | Approval | Answer | CallbackResponse | Interrupt | Stop | Finish | AnyControl
COMMAND_TYPES: dict[str, type[AnyCommand]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyCommand)}


def outcome_of_command(command: AnyControl, error: str | None, value: Any = None) -> CommandResultData:
    """Return the outcome of a command: the error of one that was not carried out, or the answer to a question."""
    fields: dict[str, Any] = msgspec.to_builtins(command)
    return CommandResultData(command_id=fields.pop("command_id", None), command=fields, error=error, value=value)


_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(AnyEvent)
_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_command_decoder = msgspec.json.Decoder(AnyCommand)


class ProtocolError(ValueError):
    """A line does not fit the contract; the message says why."""


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Stands for an event whose type this version does not know, so that a reader can skip it."""

    type: str
    seq: int | None = None


def event_of(
    data: EventData,
    *,
    seq: int | None,
    ts: float,
    trace_id: str,
    span_id: str,
    parent_span_id: str | None = None,
) -> AnyEvent:
    """Return the event with this data and envelope."""
    kind: Any = _EVENT_OF[type(data)]
    return kind(
        v=PROTOCOL_VERSION,
        seq=seq,
        ts=ts,
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        data=data,
    )


def encode(message: Event | Command) -> bytes:
    """Return an event or a command as a line, with its line feed."""
    return to_json(message) + b"\n"


def to_json(value: Any) -> bytes:
    """Return a value as JSON. A lone surrogate, which UTF-8 cannot encode, becomes U+FFFD."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(replace_surrogates(msgspec.to_builtins(value)))


def decode_event(line: bytes) -> AnyEvent | UnknownEvent:
    """Return the event in a line of a runner's stdout; raise `ProtocolError` if it is not one.

    The line is not trusted: any process that can write to the runner's stdout may have written it.
    """
    try:
        return _event_decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
        unknown = _unknown_event(line)
        if unknown is not None:
            return unknown
        raise ProtocolError(_reason(error)) from None


def _unknown_event(line: bytes) -> UnknownEvent | None:
    try:
        header = _header_decoder.decode(line)
        kind = msgspec.json.decode(header["type"], type=str)
        seq = msgspec.json.decode(header["seq"], type=int | None) if "seq" in header else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, KeyError):
        return None
    return None if kind in EVENT_TYPES else UnknownEvent(type=kind, seq=seq)


def decode_command(line: bytes) -> AnyCommand:
    """Return the command in a line of stdin; raise `ProtocolError` if it is not one."""
    try:
        try:
            return _command_decoder.decode(line)
        except msgspec.DecodeError:
            # msgspec refuses half of an escaped surrogate pair, which the json module reads. A prompt that was cut in
            # the middle of an emoji must not be refused.
            return msgspec.convert(replace_surrogates(json.loads(line)), AnyCommand)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(_reason(error)) from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def replace_surrogates(value: Any) -> Any:
    """Return a JSON value in which U+FFFD replaces each lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {replace_surrogates(key): replace_surrogates(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [replace_surrogates(item) for item in cast("list[Any]", value)]
    return value


def input_digest(tool_input: dict[str, Any]) -> str:
    """Return the SHA-256 of a tool's input as JSON with sorted keys, without spaces, with non-ASCII escaped."""
    canonical = json.dumps(tool_input, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one event."""
    return _schema(AnyEvent)


def command_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one command."""
    return _schema(AnyCommand)


def _schema(kind: Any) -> dict[str, Any]:
    schema = msgspec.json.schema(kind)
    # The descriptions are docstrings, which Python before 3.13 leaves indented.
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    return schema
