"""What single messages of the SDK say, as data of events. Pure: nothing here remembers anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from claude_agent_sdk import ResultMessage

from .contract import __version__
from .contract.protocol import ErrorType, ResultData, StartData, to_json

COUNTED = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "costUSD")
"""What of a model's usage adds up, in the CLI's words."""

ModelUsage = dict[str, dict[str, float]]
"""By model, what is `COUNTED`."""

MAX_CONTENT = 256 * 1024
"""Most of a tool result that goes into its event, in characters; the size told is the whole one's."""


def start_data(data: dict[str, Any], resumed: bool) -> StartData:
    """Return what ``system/init`` says of the agent."""
    return StartData(
        session_id=str(data.get("session_id") or ""),
        model=str(data.get("model") or ""),
        tools=[str(name) for name in data.get("tools") or ()],
        cwd=str(data.get("cwd") or ""),
        permission_mode=str(data.get("permissionMode") or ""),
        resumed=resumed,
        runner_version=__version__,
    )


def error_text(message: ResultMessage) -> str:
    """Return why a turn failed, in the CLI's words."""
    return "; ".join(message.errors or ()) or message.result or message.subtype


def model_usage(usage: Mapping[str, Any]) -> ModelUsage:
    """Return what of the CLI's usage by model adds up."""
    states = {model: cast("dict[str, Any]", each) for model, each in usage.items() if isinstance(each, dict)}
    return {
        model: {key: each[key] for key in COUNTED if isinstance(each.get(key), int | float)}
        for model, each in states.items()
    }


def used_since(now: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> ModelUsage:
    """Return what was used between two states of a conversation, of the models that were used."""
    since = {
        model: {key: max(0, round(value - before.get(model, {}).get(key, 0), 9)) for key, value in each.items()}
        for model, each in now.items()
    }
    return {model: each for model, each in since.items() if any(each.values())}


def result_data(
    message: ResultMessage, turn: int, cost: float, total: float, used: ModelUsage, error_type: ErrorType | None
) -> ResultData:
    """Return what a turn came to; ``cost`` and ``used`` are the turn's, ``total`` the conversation's, in US dollars."""
    return ResultData(
        turn=turn,
        result=message.result,
        is_error=message.is_error,
        subtype=message.subtype,
        cost_usd=round(cost, 9),
        total_cost_usd=total,
        duration_ms=message.duration_ms,
        duration_api_ms=message.duration_api_ms,
        num_turns=message.num_turns,
        usage=message.usage or {},
        model_usage=message.model_usage or {},
        turn_model_usage=used,
        session_id=message.session_id,
        error_type=error_type,
    )


def bounded(content: object) -> tuple[object, int, bool]:
    """Return a tool result's content cut to `MAX_CONTENT`, its whole size in bytes, and whether it was cut."""
    if content is None:
        return "", 0, False
    if isinstance(content, str):
        size = len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
        return content[:MAX_CONTENT], size, len(content) > MAX_CONTENT
    encoded = to_json(content)
    if len(encoded) <= MAX_CONTENT:
        return content, sum(_sizes(content)), False
    return "\n".join(_texts(content))[:MAX_CONTENT], sum(_sizes(content)), True


def whole_size(output: object) -> int:
    """Return the size in bytes of what a tool put out, as far as the CLI tells; 0 where it does not.

    ``output`` is a PostToolUse hook's ``tool_response``: the content of an MCP tool's result, or facts
    about a built-in one's.
    """
    match output:
        case {"persistedOutputSize": int(size)}:
            return size
        case list():
            return sum(_sizes(cast("list[object]", output)))
        case _:
            return 0


def _texts(content: object) -> Iterator[str]:
    match content:
        case {"type": "text", "text": str(text)}:
            yield text
        case {"type": str(kind)}:
            yield f"[{kind}]"
        case list():
            for block in cast("list[object]", content):
                yield from _texts(block)
        case _:
            pass


def _sizes(content: object) -> Iterator[int]:
    match content:
        case str():
            yield len(content.encode("utf-8", "replace"))
        case {"type": "text", "text": str(text)}:
            yield len(text.encode("utf-8", "replace"))
        case list():
            for block in cast("list[object]", content):
                yield from _sizes(block)
        case _:
            yield len(to_json(content))
