"""Span attributes of OpenTelemetry's GenAI semantic conventions, and those that Sandspan adds.

The conventions are in development (repository semantic-conventions-genai) and the constants of the Python package are
deprecated, so the names are strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from .classify import classify
from .protocol import ErrorType, input_digest, to_json
from .sanitize import EXCERPT_LENGTH, Sanitizer, ToolSanitizer, brief, single_line
from .spans import Attributes, Span

PROVIDER = "anthropic"
AGENT_NAME = "claude-agent"
MESSAGES = frozenset({"gen_ai.input.messages", "gen_ai.output.messages"})
CONTENT = MESSAGES | {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"}
"""Attributes that hold prompts, answers, and the arguments and results of tools."""

_MAX_NAME = 200

_BULKY = frozenset({"content", "new_string", "old_string", "file_text", "new_source", "edits"})
"""Tool arguments that hold file contents, of which a span has an excerpt at most."""


def invoke_agent(model: str | None, turn: int) -> Attributes:
    """Return the attributes of a turn's span."""
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.agent.name": AGENT_NAME,
        "agent.turn": turn,
    }
    if model:
        attributes["gen_ai.request.model"] = model
    return attributes


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


def set_request(span: Span, model: str, *, stream: bool, parameters: Mapping[str, Any]) -> None:
    """Set a chat span's model and parameters from the request; ``parameters`` have the API's names."""
    span.attributes["gen_ai.request.stream"] = stream
    if model:
        span.attributes["gen_ai.request.model"] = model
    for name in _PARAMETERS:
        if (value := parameters.get(name.rpartition(".")[2])) is not None:
            span.attributes[name] = value


def execute_tool(tool_id: str, name: str, input_size: int) -> Attributes:
    """Return the attributes that a tool call's span has from its start; ``input_size`` is in bytes of JSON."""
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": brief(name),  # any text, if the model calls a tool that does not exist
        "gen_ai.tool.call.id": single_line(tool_id, _MAX_NAME),
        "gen_ai.tool.type": "extension" if name.startswith("mcp__") else "function",
        "tool.input_size": input_size,
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
        span.name = f"chat {model}"
        span.attributes["gen_ai.response.model"] = model
        span.attributes.setdefault("gen_ai.request.model", model)
    if isinstance(response_id := message.get("id"), str):
        span.attributes["gen_ai.response.id"] = response_id
    _set_input_tokens(span, message.get("usage") or {})
    _set_surcharges(span, message.get("usage") or {})


_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _set_input_tokens(span: Span, usage: Mapping[str, Any]) -> None:
    own, read, created = (_count(usage, key) for key in _INPUT_COUNTS)
    # Anthropic's input_tokens exclude cached tokens; the conventions include them.
    span.attributes["gen_ai.usage.input_tokens"] = own + read + created
    span.attributes["gen_ai.usage.cache_read.input_tokens"] = read
    span.attributes["gen_ai.usage.cache_creation.input_tokens"] = created


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
    if any(_count(usage, key) for key in _INPUT_COUNTS):
        _set_input_tokens(span, usage)
    _set_surcharges(span, usage)


def set_finish(span: Span, reason: object) -> None:
    """Set the stop reason of a chat span's response."""
    if isinstance(reason, str):
        span.attributes["gen_ai.response.finish_reasons"] = (reason,)


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


def set_input(span: Span, text: str, sanitize: Sanitizer | None) -> None:
    """Put the sanitized prompt on a span, unless ``sanitize`` is None."""
    if sanitize is not None:
        span.attributes["gen_ai.input.messages"] = message("user", sanitize(text))


def set_output(span: Span, text: str, sanitize: Sanitizer | None) -> None:
    """Put the sanitized answer of the model on a span, unless ``sanitize`` is None."""
    if sanitize is not None:
        span.attributes["gen_ai.output.messages"] = message("assistant", sanitize(text))


def message(role: str, text: str) -> str:
    """Return the JSON of one text message in the form of the GenAI conventions."""
    return to_json([{"role": role, "parts": [{"type": "text", "content": text}]}]).decode()


def read_message(value: str) -> tuple[str, str] | None:
    """Return role and text from JSON that `message` made, or None for other values."""
    try:
        match json.loads(value):
            case [{"role": str(role), "parts": [{"type": "text", "content": str(text)}]}]:
                return role, text
            case _:
                return None
    except (ValueError, RecursionError):
        return None


def set_arguments(span: Span, tool_input: Mapping[str, Any], sanitizer: ToolSanitizer | None) -> None:
    """Put a tool's sanitized arguments on a span, with excerpts of file contents at most, if there is a sanitizer."""
    if sanitizer is not None:
        # Together the excerpts have no more than `EXCERPT_LENGTH` characters.
        limit = EXCERPT_LENGTH // max(1, len(_BULKY & tool_input.keys()))
        shown = {key: _argument(key, value, sanitizer, limit) for key, value in tool_input.items()}
        span.attributes["gen_ai.tool.call.arguments"] = sanitizer.sanitize(to_json(shown).decode())


def _argument(key: str, value: object, sanitizer: ToolSanitizer, limit: int) -> object:
    if key in _BULKY:
        return sanitizer.excerpt(_as_text(value), limit) if sanitizer.shows_excerpts else "[left out]"
    if key == "command" and isinstance(value, str) and len(value) > EXCERPT_LENGTH:
        return sanitizer.excerpt(value)  # it may write a file
    return value


def set_tool_output(span: Span, name: str, result: object, sanitizer: ToolSanitizer | None) -> None:
    """Put a tool's sanitized result on a span, if there is a sanitizer.

    The result of an MCP tool is whole. Those of other tools hold file contents or command output, and are excerpts, if
    the sanitizer shows any.
    """
    if sanitizer is None:
        return
    if name.startswith("mcp__"):
        span.attributes["gen_ai.tool.call.result"] = sanitizer.sanitize(to_json(result).decode())
    elif sanitizer.shows_excerpts:
        span.attributes["gen_ai.tool.call.result"] = sanitizer.excerpt(_as_text(result))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def _count(usage: Mapping[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) else 0
