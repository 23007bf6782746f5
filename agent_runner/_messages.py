"""Convert single messages of the SDK to data of events. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from claude_agent_sdk import ResultMessage

from .contract import __version__
from .contract.protocol import ErrorType, ResultData, StartData, to_json

COUNTED = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "costUSD")
"""The fields of the CLI's usage by model that can be added up."""

ModelUsage = dict[str, dict[str, float]]
"""The `COUNTED` fields by model."""

MAX_CONTENT = 256 * 1024
"""Maximum characters of a tool result in its event; the event's ``bytes`` is the size of the whole result."""

_EXIT_CODE = re.compile(r"Exit code (\d+)(?:\n|$)")
_WITHOUT_EXIT_CODE = {"backgroundTaskId", "returnCodeInterpretation"}


def start_data(data: dict[str, Any], resumed: bool) -> StartData:
    """Return the data of the ``start`` event from the CLI's ``system/init`` message."""
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
    """Return the CLI's text on why a turn failed."""
    return "; ".join(message.errors or ()) or message.result or message.subtype


def model_usage(usage: Mapping[str, Any]) -> ModelUsage:
    """Return the `COUNTED` fields of the CLI's usage by model."""
    states = {model: cast("dict[str, Any]", each) for model, each in usage.items() if isinstance(each, dict)}
    return {
        model: {key: each[key] for key in COUNTED if isinstance(each.get(key), int | float)}
        for model, each in states.items()
    }


def used_since(now: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> ModelUsage:
    """Return the difference of a conversation's usage by model, without models that were not used in between."""
    since = {
        model: {key: max(0, round(value - before.get(model, {}).get(key, 0), 9)) for key, value in each.items()}
        for model, each in now.items()
    }
    return {model: each for model, each in since.items() if any(each.values())}


def result_data(
    message: ResultMessage, turn: int, cost: float, total: float, used: ModelUsage, error_type: ErrorType | None
) -> ResultData:
    """Return the data of the ``result`` event; ``cost`` and ``used`` are the turn's, ``total`` the conversation's."""
    return ResultData(
        turn=turn,
        result=message.result,
        is_error=message.is_error,
        subtype=message.subtype,
        cost_usd=round(cost, 9),
        total_cost_usd=round(total, 9),
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
    """Return a tool result's content cut to `MAX_CONTENT`, the size of the whole in bytes, and whether it was cut."""
    if content is None:
        return "", 0, False
    if isinstance(content, str):
        size = len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
        return content[:MAX_CONTENT], size, len(content) > MAX_CONTENT
    encoded = to_json(content)
    if len(encoded) <= MAX_CONTENT:
        return content, sum(_sizes(content)), False
    return "\n".join(_texts(content))[:MAX_CONTENT], sum(_sizes(content)), True


def exit_code_of(name: str, output: object, error: object) -> int | None:
    """Return the exit code of a command that Bash ran, or None if the CLI does not report it.

    ``output`` is the ``tool_response`` of a PostToolUse hook, ``error`` the text of a PostToolUseFailure hook, which
    alone has the code of a failed command.
    """
    if name != "Bash":
        return None
    if isinstance(error, str):
        found = _EXIT_CODE.match(error)
        return int(found[1]) if found else None
    facts = cast("dict[str, Any]", output) if isinstance(output, dict) else {}
    # The CLI reports no code of a command that still runs, or whose code is no failure, such as 1 of grep.
    ended_well = facts.get("interrupted") is False and not facts.keys() & _WITHOUT_EXIT_CODE
    return 0 if ended_well else None


def whole_size(output: object) -> int:
    """Return the size in bytes of a tool's whole output, or 0 if the CLI does not report it.

    ``output`` is the ``tool_response`` of a PostToolUse hook: the content of an MCP tool's result, or an object with
    facts about a built-in tool's result.
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
