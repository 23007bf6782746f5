"""The contract between a runner and whoever reads it: events out, commands in, one JSON object a line.

Pure, and imports nothing heavy: a reader of events needs this module alone. Version 1 only ever adds
fields and types; a reader skips event types and fields it does not know. Times are seconds since the
epoch, durations milliseconds, sizes bytes; ids of traces and spans are lower-case hex (W3C Trace
Context).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_type_hints

import msgspec

PROTOCOL_VERSION = 1

MAX_LINE_BYTES = 16 * 1024 * 1024
"""No line on either stream is longer; a reader may drop one that is."""

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

EndReason = Literal["completed", "stopped", "interrupted", "terminated", "failed", "misconfigured"]

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
Timestamp = Annotated[float, msgspec.Meta(ge=0, le=9e9)]
"""Seconds since the epoch; nanoseconds of it fit the 64 bits that OTLP has for them."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event carries. Fields at their default are left out of the wire."""


class StartData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent is up: Claude's session id, and what it may use."""

    session_id: str
    model: str
    tools: list[str]
    cwd: str
    permission_mode: str
    resumed: bool
    runner_version: str


class TurnStartData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A turn begins. ``prompt_size`` is in bytes, 0 where the CLI began the turn itself."""

    turn: int
    prompt_size: int


class TextDeltaData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of text as it is written. Live only: no seq, not in the journal."""

    text: str
    message_id: str | None = None


class TextData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """One whole text block of the model's answer."""

    text: str
    message_id: str | None = None
    parent_tool_use_id: str | None = None


class ThinkingData(TextData, frozen=True, kw_only=True, omit_defaults=True):
    """One whole thinking block."""


class ToolUseData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The model calls a tool. ``parent_tool_use_id`` names the subagent's own call, if one calls."""

    id: str
    name: str
    input: dict[str, Any]
    parent_tool_use_id: str | None = None


class ToolResultData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call ended. ``bytes`` is the size before ``content`` was cut."""

    tool_use_id: str
    content: Any
    is_error: bool
    duration_ms: float
    bytes: int
    truncated: bool = False
    error_type: ErrorType | None = None


class ApprovalRequestData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A person is asked. ``input_sha256`` is over the input as canonical JSON (see `input_digest`)."""

    approval_id: str
    tool_use_id: str
    tool_name: str
    input: dict[str, Any]
    input_sha256: str
    expires_at: float
    reason: str | None = None
    suggestions: list[dict[str, Any]] = []


class ApprovalResolvedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """How the wait ended, who decided and how long it took."""

    approval_id: str
    tool_use_id: str
    decision: Decision
    wait_ms: float
    decided_by: str | None = None


class QuestionRequestData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent asks the person (AskUserQuestion); ``questions`` are the tool's own."""

    question_id: str
    tool_use_id: str
    questions: list[dict[str, Any]]
    expires_at: float


class QuestionResolvedData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The answers by question, or None with ``decision`` telling why there are none."""

    question_id: str
    answers: dict[str, Any] | None
    decision: Literal["answered", "timeout", "cancelled", "deny"]
    wait_ms: float
    decided_by: str | None = None


class ResultData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A turn ended. ``cost_usd`` is this turn's, ``total_cost_usd`` the conversation's so far.

    ``turn_model_usage`` is this turn's by model (tokens and ``costUSD``), ``model_usage`` the conversation's so far.
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


class ErrorData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """Something failed. ``retryable`` says whether the same again may succeed."""

    error_type: ErrorType
    message: str
    retryable: bool = False


class LogData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """A line worth knowing: the CLI's stderr, or the runner's own remark."""

    stream: Literal["stderr", "runner", "telemetry"]
    text: str


class TelemetryData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """Finished spans: base64 of an OTLP ``ExportTraceServiceRequest``."""

    otlp: str


class EndData(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """Always the last event."""

    reason: EndReason
    exit_code: int


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The envelope. ``seq`` starts at 1 without holes; only `TextDelta` has none.

    ``trace_id`` and ``span_id`` name the span the event belongs to. An event that opens a span also
    has ``parent_span_id``, so that a reader can end what a dead runner left open.
    """

    v: Literal[1]
    ts: Timestamp
    trace_id: TraceId
    span_id: SpanId
    seq: int | None = None
    parent_span_id: SpanId | None = None

    @property
    def type(self) -> str:
        """The event's type as on the wire."""
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


class Result(Event, frozen=True, kw_only=True, tag="result"):
    data: ResultData


class Error(Event, frozen=True, kw_only=True, tag="error"):
    data: ErrorData


class Log(Event, frozen=True, kw_only=True, tag="log"):
    data: LogData


class TelemetryEvent(Event, frozen=True, kw_only=True, tag="telemetry"):
    data: TelemetryData


Telemetry = TelemetryEvent
"""The name under which `host_client.events` publishes it."""


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
    | Result
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
    | ResultData
    | ErrorData
    | LogData
    | TelemetryData
    | EndData
)

EVENT_TYPES: dict[str, type[AnyEvent]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyEvent)}
_EVENT_OF: dict[type[EventData], type[AnyEvent]] = {get_type_hints(kind)["data"]: kind for kind in EVENT_TYPES.values()}


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What a host may write to the runner's stdin.

    A second command with the same ``command_id`` is ignored: one whose delivery is unsure can be sent again.
    """

    MAX_BYTES: ClassVar[int] = MAX_LINE_BYTES

    command_id: str | None = None


class Prompt(Command, frozen=True, kw_only=True, tag="prompt"):
    """The next turn. Its own ``traceparent`` puts that turn under another span."""

    text: str
    traceparent: str | None = None
    tracestate: str | None = None


class Approval(Command, frozen=True, kw_only=True, tag="approval"):
    """The answer to an `ApprovalRequest`, good once. A given ``input_sha256`` must be the request's."""

    approval_id: str
    decision: Literal["allow", "deny"]
    message: str | None = None
    updated_input: dict[str, Any] | None = None
    remember: bool = False
    decided_by: str | None = None
    input_sha256: str | None = None


class Answer(Command, frozen=True, kw_only=True, tag="answer"):
    """The answer to a `QuestionRequest`: by the question's whole text, the label chosen or free text.

    Under another key it is none: an `Error` of type ``protocol`` says so, and the question waits on.
    """

    question_id: str
    answers: dict[str, Any]
    decided_by: str | None = None


class Interrupt(Command, frozen=True, kw_only=True, tag="interrupt"):
    """End the current turn; the conversation goes on."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """End the current turn, then the runner."""


class Finish(Command, frozen=True, kw_only=True, tag="finish"):
    """No more prompts will come: end when nothing is left to do. Approvals and answers still count."""


AnyCommand = Prompt | Approval | Answer | Interrupt | Stop | Finish
COMMAND_TYPES: dict[str, type[AnyCommand]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyCommand)}

_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(AnyEvent)
_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_command_decoder = msgspec.json.Decoder(AnyCommand)


class ProtocolError(ValueError):
    """A line that breaks the contract; the message says how."""


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a type this version does not know: its place in the stream, to be skipped."""

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
    """Put data into its envelope."""
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
    """Return one line, newline included."""
    return to_json(message) + b"\n"


def to_json(value: Any) -> bytes:
    """Return a value as JSON. A lone surrogate, which UTF-8 has no form for, becomes U+FFFD."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(replace_surrogates(msgspec.to_builtins(value)))


def decode_event(line: bytes) -> AnyEvent | UnknownEvent:
    """Read one line of a runner's stdout; raise `ProtocolError` for what does not fit.

    The line is untrusted: whatever can write to the runner's stdout may have written it.
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
    """Read one line of stdin; raise `ProtocolError` that says what is wrong with it."""
    try:
        try:
            return _command_decoder.decode(line)
        except msgspec.DecodeError:
            # Half of an escaped surrogate pair is JSON to the json module, not to msgspec; a person's
            # prompt cut in the middle of an emoji must not be refused for that.
            return msgspec.convert(replace_surrogates(json.loads(line)), AnyCommand)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(_reason(error)) from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def replace_surrogates(value: Any) -> Any:
    """Return the value with every lone surrogate in its strings replaced by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {replace_surrogates(key): replace_surrogates(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [replace_surrogates(item) for item in cast("list[Any]", value)]
    return value


def input_digest(tool_input: dict[str, Any]) -> str:
    """Return the SHA-256 of an input as JSON with sorted keys, no spaces, non-ASCII escaped."""
    canonical = json.dumps(tool_input, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one event."""
    return _schema(AnyEvent)


def command_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one command."""
    return _schema(AnyCommand)


def _schema(kind: Any) -> dict[str, Any]:
    """Return a type's JSON Schema; Python before 3.13 leaves docstrings, which are its descriptions, indented."""
    schema = msgspec.json.schema(kind)
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    return schema
