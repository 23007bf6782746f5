"""Convert single messages of the SDK to data of events. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from claude_agent_sdk import ResultMessage

from .contract import __version__
from .contract.protocol import COMMAND_TYPES, ErrorType, Prompt, ResultData, StartData

COUNTED = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "costUSD")
"""The fields of the CLI's usage by model that can be added up."""

ModelUsage = dict[str, dict[str, float]]
"""The `COUNTED` fields by model."""


class Spent(NamedTuple):
    """The cost in US dollars and the usage by model of a conversation so far."""

    cost: float
    usage: ModelUsage


def start_data(data: dict[str, Any], resumed: bool, sdk_options: Sequence[str]) -> StartData:
    """Return the data of the ``start`` event from the CLI's ``system/init`` message."""
    return StartData(
        session_id=str(data.get("session_id") or ""),
        model=str(data.get("model") or ""),
        tools=[str(name) for name in data.get("tools") or ()],
        cwd=str(data.get("cwd") or ""),
        permission_mode=str(data.get("permissionMode") or ""),
        resumed=resumed,
        runner_version=__version__,
        sdk_options=list(sdk_options),
        commands=list(COMMAND_TYPES),
        takes_attachments=True,
    )


def content_of(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Return the content of a prompt's message to the CLI: its text, after its images and documents if it has any."""
    if not prompt.content:
        return prompt.text
    blocks: list[dict[str, Any]] = msgspec.to_builtins(prompt.content, builtin_types=())
    for block in blocks:
        if block["type"] == "image":
            block.pop("title", None)  # the Messages API refuses it
    return [*blocks, *([{"type": "text", "text": prompt.text}] if prompt.text else [])]


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
        structured_output=message.structured_output,
    )
