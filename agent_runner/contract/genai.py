"""Span attributes of OpenTelemetry's GenAI semantic conventions v0.1.0, and those that Sandspan adds.

The conventions are in development (repository semantic-conventions-genai) and the constants of the Python package are
deprecated, so the names are strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from . import messages
from .attachments import AttachmentView
from .classify import classify
from .messages import Block, ContentSanitizer
from .protocol import ErrorType, input_digest
from .sanitize import Sanitizer, ToolSanitizer, brief, single_line
from .spans import Attributes, Span

PROVIDER = "anthropic"
AGENT_NAME = "claude-agent"
_DESCRIPTIONS = {"StructuredOutput": "Gives the answer of the turn in the form that output_format asks for."}
"""Descriptions of tools that the CLI makes for itself, and whose names alone do not say their purpose."""
CACHE_WRITE = "gen_ai.usage.cache_write.input_tokens"

MESSAGES = frozenset(
    {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.definitions"}
)
"""Attributes that hold the JSON of messages, of their parts, or of tools."""

CONTENT = MESSAGES | {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"}
"""Attributes that hold prompts, answers, and the definitions, arguments and results of tools."""

_MAX_NAME = 200


def invoke_agent(model: str | None, turn: int) -> Attributes:
    """Return the attributes that a turn's span has from its start."""
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": AGENT_NAME,
        "agent.turn": turn,
    }
    if model:
        attributes["gen_ai.request.model"] = model
    return attributes


def invoke_subagent(name: str) -> Attributes:
    """Return the attributes that a subagent's span has from its start; ``name`` is the subagent's type."""
    return {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": brief(name)}


def chat(model: str | None) -> Attributes:
    """Return the attributes that a model request's span has from its start."""
    attributes: Attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER}
    if model:
        attributes["gen_ai.request.model"] = model
    return attributes


_PARAMETERS = (
    "gen_ai.request.max_tokens",
    "gen_ai.request.temperature",
    "gen_ai.request.top_k",
    "gen_ai.request.top_p",
)


def set_request(span: Span, parameters: Mapping[str, Any]) -> None:
    """Set a chat span's name and parameters from the request; ``parameters`` have the names of the Messages API."""
    if model := parameters.get("model"):
        span.name = f"chat {model}"
        span.attributes["gen_ai.request.model"] = model
    if parameters.get("stream"):
        set_streaming(span)
    for name in _PARAMETERS:
        if (value := parameters.get(name.rpartition(".")[2])) is not None:
            span.attributes[name] = value
    stops = parameters.get("stop_sequences")
    if isinstance(stops, list):
        span.attributes["gen_ai.request.stop_sequences"] = tuple(map(str, cast("list[Any]", stops)))
    output = parameters.get("output_config")
    if isinstance(output, dict) and isinstance(effort := cast("dict[str, Any]", output).get("effort"), str):
        span.attributes["gen_ai.request.reasoning.level"] = effort


def set_streaming(span: Span) -> None:
    """Note that a chat span's request asks for a stream. The conventions leave the attribute out of other requests."""
    span.attributes["gen_ai.request.stream"] = True


def set_server(span: Span, address: str, port: int) -> None:
    """Set host name and port of the API that a chat span's request is for."""
    span.attributes["server.address"] = address
    span.attributes["server.port"] = port


def execute_tool(tool_id: str, name: str, input_size: int) -> Attributes:
    """Return the attributes that a tool call's span has from its start; ``input_size`` is in bytes of JSON."""
    description = _DESCRIPTIONS.get(name)
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": brief(name),  # any text, if the model calls a tool that does not exist
        "gen_ai.tool.call.id": single_line(tool_id, _MAX_NAME),
        "gen_ai.tool.type": "extension" if name.startswith("mcp__") else "function",
        "tool.input_size": input_size,
        **({"gen_ai.tool.description": description} if description is not None else {}),
    }


def approval(approval_id: str, tool_id: str, name: str) -> Attributes:
    """Return the attributes of a span that waits for a person. The conventions have none for it."""
    ids = {"approval.id": approval_id, "gen_ai.tool.call.id": tool_id}
    return {**{key: single_line(value, _MAX_NAME) for key, value in ids.items()}, "gen_ai.tool.name": brief(name)}


def set_approval(
    span: Span, decision: str, decided_by: str | None, wait_ms: float, input_sha256: str | None = None
) -> None:
    """Set decision, decider, time and the allowed input's digest on an approval span. A denial is not an error."""
    span.attributes["approval.decision"] = decision
    if input_sha256 is not None:
        span.attributes["approval.input_sha256"] = single_line(input_sha256, _MAX_NAME)
    span.attributes["approval.wait_ms"] = round(wait_ms, 3)
    if decided_by:
        span.attributes["approval.decided_by"] = single_line(decided_by, _MAX_NAME)
    if decision in ("timeout", "cancelled"):
        span.fail(classify(tool=decision).error_type, decision)


def retry(data: Mapping[str, Any], error_type: ErrorType) -> Attributes:
    """Return the attributes of the span event for one retry of a model request."""
    attributes: Attributes = {"error.type": error_type}
    for key, name in (("attempt", "retry.attempt"), ("retry_delay_ms", "retry.delay_ms")):
        if isinstance(value := data.get(key), int | float):
            attributes[name] = value
    if isinstance(status := data.get("error_status"), int):
        attributes["http.response.status_code"] = status
    return attributes


def set_response(span: Span, message: Mapping[str, Any]) -> None:
    """Set a chat span's response id, model and input tokens from the stream's ``message_start``."""
    if isinstance(model := message.get("model"), str):
        span.attributes["gen_ai.response.model"] = model
    if isinstance(response_id := message.get("id"), str):
        span.attributes["gen_ai.response.id"] = response_id
    _set_input_tokens(span, message.get("usage") or {})
    _set_surcharges(span, message.get("usage") or {})


_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _set_input_tokens(span: Span, usage: Mapping[str, Any]) -> None:
    own, read, written = (_count(usage, key) for key in _INPUT_COUNTS)
    # Anthropic's input_tokens exclude cached tokens; the conventions include them.
    span.attributes["gen_ai.usage.input_tokens"] = own + read + written
    span.attributes["gen_ai.usage.cache_read.input_tokens"] = read
    span.attributes[CACHE_WRITE] = written


def _set_surcharges(span: Span, usage: Mapping[str, Any]) -> None:
    """Set what makes a request cost more than its tokens at usual prices, for which the conventions have no names."""
    for name, group, key in (
        ("agent.usage.cache_creation_1h_input_tokens", "cache_creation", "ephemeral_1h_input_tokens"),
        ("agent.usage.web_search_requests", "server_tool_use", "web_search_requests"),
    ):
        counts = usage.get(group)
        if isinstance(counts, dict) and (count := _count(cast("dict[str, Any]", counts), key)):
            span.attributes[name] = count
    if usage.get("speed") == "fast":
        span.attributes["agent.usage.speed"] = "fast"
    if usage.get("inference_geo") == "us":
        span.attributes["agent.usage.inference_geo"] = "us"


def set_first_chunk(span: Span, now: int) -> None:
    """Set a chat span's time to the first chunk in seconds, unless it is set."""
    span.attributes.setdefault("gen_ai.response.time_to_first_chunk", round((now - span.start) / 1e9, 6))


def set_first_byte(span: Span, now: int) -> None:
    """Set the time until the answer of a chat span's request began, in milliseconds. The conventions have no name."""
    span.attributes["chat.first_byte_ms"] = round((now - span.start) / 1e6, 3)


def set_usage(span: Span, usage: Mapping[str, Any]) -> None:
    """Set a chat span's output tokens, which are known at the end of the response, and input tokens if it has them."""
    span.attributes["gen_ai.usage.output_tokens"] = _count(usage, "output_tokens")
    details = usage.get("output_tokens_details")
    if isinstance(details, dict) and (thinking := _count(cast("dict[str, Any]", details), "thinking_tokens")):
        span.attributes["gen_ai.usage.reasoning.output_tokens"] = thinking
    if any(_count(usage, key) for key in _INPUT_COUNTS):
        _set_input_tokens(span, usage)
    _set_surcharges(span, usage)


def set_finish(span: Span, reason: object) -> None:
    """Set the stop reason of a chat span's response."""
    if isinstance(reason, str):
        span.attributes["gen_ai.response.finish_reasons"] = (reason,)


def set_unfinished(span: Span) -> None:
    """Set ``error`` as the stop reason of a chat span whose response failed, unless it has a stop reason."""
    span.attributes.setdefault("gen_ai.response.finish_reasons", ("error",))


def set_tool_outcome(span: Span, output_size: int, is_error: bool, execution_ms: float | None, wait_ms: float) -> None:
    """Set output size, error flag, execution time and approval wait on the span of an ended tool call."""
    span.attributes["tool.output_size"] = output_size
    span.attributes["tool.is_error"] = is_error
    if execution_ms is not None:
        span.attributes["tool.execution_ms"] = execution_ms
    span.attributes["tool.approval_wait_ms"] = round(wait_ms, 3)


def set_exit_code(span: Span, exit_code: int | None) -> None:
    """Set the exit code of a command on its call's span, if it is known."""
    if exit_code is not None:
        span.attributes["process.exit.code"] = exit_code


def set_executed(span: Span, executed_input: Mapping[str, Any], sanitizer: ToolSanitizer | None) -> None:
    """Set the digest, and if configured the arguments, of an input that differs from the one the model wrote."""
    span.attributes["tool.executed_input_sha256"] = input_digest(dict(executed_input))
    set_arguments(span, executed_input, sanitizer)


def set_delays(span: Span, queue_ms: float, hook_ms: float) -> None:
    """Set, on a call's span, the time until it began and the time in hooks from settings, both in milliseconds."""
    span.attributes["tool.queue_ms"] = round(max(0.0, queue_ms), 3)
    if hook_ms:
        span.attributes["tool.hook_ms"] = round(hook_ms, 3)


def set_denied_by(span: Span, denied_by: str | None) -> None:
    """Set who denied a tool call on its span, if it was denied."""
    if denied_by:
        span.attributes["tool.denied_by"] = denied_by


def set_result(span: Span, message: Any, cost: float) -> None:
    """Set cost in US dollars, number of model requests and stop reason on a turn's span, from a ``ResultMessage``."""
    span.attributes["agent.cost_usd"] = round(cost, 9)
    span.attributes["agent.num_turns"] = message.num_turns
    if message.stop_reason:
        span.attributes["gen_ai.response.finish_reasons"] = (str(message.stop_reason),)


def set_input(span: Span, text: str, sanitize: Sanitizer | None, attachments: Iterable[AttachmentView] = ()) -> None:
    """Put the sanitized prompt on a span, and that it has attachments, unless ``sanitize`` is None."""
    if sanitize is not None:
        span.attributes["gen_ai.input.messages"] = messages.prompt_message(sanitize(text), attachments)


def set_output(span: Span, text: str, finish_reason: str | None, sanitize: Sanitizer | None) -> None:
    """Put the sanitized last text of an agent on its span, unless ``sanitize`` is None; call it after `Span.fail`."""
    if sanitize is not None:
        shown = messages.text_message("assistant", sanitize(text), finish_reason or _usual_reason(span))
        span.attributes["gen_ai.output.messages"] = shown


def set_answer(span: Span, blocks: Sequence[Block], content: ContentSanitizer | None) -> None:
    """Put the blocks of a model's answer on its chat span, unless ``content`` is None; call it after `set_finish`."""
    if content is not None and blocks:
        reasons = span.attributes.get("gen_ai.response.finish_reasons")
        reason = reasons[0] if isinstance(reasons, tuple) else _usual_reason(span)
        span.attributes["gen_ai.output.messages"] = content.output(blocks, reason)


def _usual_reason(span: Span) -> str:
    """Return the stop reason of a message whose own is not known; backends drop messages without one."""
    return "stop" if span.error_type is None else "error"


def set_whole_request(span: Span, request: Mapping[str, Any], content: ContentSanitizer) -> None:
    """Put the messages, instructions and tools of a request to the Messages API on its chat span."""
    span.attributes["gen_ai.input.messages"] = content.input(request.get("messages"))
    if system := request.get("system"):
        span.attributes["gen_ai.system_instructions"] = content.instructions(system)
    if tools := request.get("tools"):
        span.attributes["gen_ai.tool.definitions"] = messages.tool_definitions(tools)


def set_arguments(span: Span, tool_input: Mapping[str, Any], sanitizer: ToolSanitizer | None) -> None:
    """Put a tool's sanitized arguments on a span, if there is a sanitizer; see `messages.tool_arguments`."""
    if sanitizer is not None:
        span.attributes["gen_ai.tool.call.arguments"] = messages.tool_arguments(tool_input, sanitizer)


def set_tool_output(span: Span, name: str, result: object, sanitizer: ToolSanitizer | None) -> None:
    """Put a tool's sanitized result on a span, if the sanitizer shows any of it; see `messages.tool_result`."""
    if (shown := messages.tool_result(name, result, sanitizer)) is not None:
        span.attributes["gen_ai.tool.call.result"] = shown


def _count(usage: Mapping[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) else 0
