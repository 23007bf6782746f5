"""Read the cost and tokens of turns and model requests, as whole numbers by model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from agent_runner.contract.genai import CACHE_WRITE
from agent_runner.contract.prices import cost, family
from agent_runner.contract.protocol import ResultData
from agent_runner.contract.sanitize import brief, single_line
from host_client.telemetry.conventions import CACHE_WRITE_BEFORE

NANO = 1_000_000_000
"""One US dollar in the unit of all sums, because integers add up exactly."""

MAX_COST_USD = 100_000.0
MAX_TOKENS = 10**12
"""Limits of one turn. A sandbox is not trusted, and one forged figure must not spoil a sum."""

MAX_MODELS = 20
"""Maximum number of models that one turn's cost is divided among."""

UNKNOWN = "unknown"
"""Model of costs for which no model was named."""

_MAX_NAME = 128


class ModelCost(NamedTuple):
    """One model's share of a turn, ``nano`` in 1e-9 US dollars. ``input_tokens`` excludes cached tokens."""

    model: str
    nano: int
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0


Request = tuple[str, dict[str, Any]]
"""The model of one request, and its usage in the form of the Messages API."""


class TurnCost(NamedTuple):
    """A turn's cost in 1e-9 US dollars, and its parts by model, which add up to it."""

    nano: int
    parts: tuple[ModelCost, ...]


def turn_of(data: ResultData, model: str | None) -> TurnCost:
    """Return a turn's cost by model; ``model`` is the session's. Raise ValueError for an impossible cost.

    If the reported costs of the models add up to another amount, the turn's cost counts.
    """
    if not 0 <= data.cost_usd <= MAX_COST_USD:
        raise ValueError(f"the sandbox reported an impossible cost of a turn: {data.cost_usd:g} US dollars")
    nano = round(data.cost_usd * NANO)
    main = _name(model) if model else UNKNOWN
    used = data.turn_model_usage
    if not used:
        return TurnCost(nano, (ModelCost(main, nano, *_tokens(data.usage, _OF_USAGE)),))
    parts = list(_parts(used))
    missing = nano - sum(part.nano for part in parts)
    if abs(missing) <= len(parts):  # the difference comes from rounding each part
        largest = max(range(len(parts)), key=lambda index: parts[index].nano)
        parts[largest] = parts[largest]._replace(nano=parts[largest].nano + missing)
        return TurnCost(nano, tuple(parts))
    if missing < 0:
        parts, missing = [part._replace(nano=0) for part in parts], nano
    return TurnCost(nano, tuple(merged([*parts, ModelCost(main, missing)])))


def request_of(attributes: Mapping[str, Any]) -> Request:
    """Return the model and usage of a model request from its span's attributes."""
    model = attributes.get("gen_ai.response.model") or attributes.get("gen_ai.request.model")
    model = model[:_MAX_NAME] if isinstance(model, str) and model else UNKNOWN  # any type may come from a sandbox
    all_input, output, read, written = _tokens(attributes, TOKEN_ATTRIBUTES)
    written = written or _count(attributes.get(CACHE_WRITE_BEFORE))  # of an older runner, or in an older spool
    # The GenAI conventions include cached tokens in the input; the price list and the API do not.
    fresh = all_input - read - written
    usage: dict[str, Any] = dict(zip(_OF_USAGE, (max(0, fresh), output, read, written), strict=True))
    for_an_hour, searches = _tokens(attributes, _SURCHARGES)
    usage["cache_creation"] = {"ephemeral_1h_input_tokens": for_an_hour}
    usage["server_tool_use"] = {"web_search_requests": searches}
    usage["speed"] = attributes.get("agent.usage.speed")
    usage["inference_geo"] = attributes.get("agent.usage.inference_geo")
    return model, usage


def priced(request: Request) -> ModelCost:
    """Return the cost of a model request at list price, 0 for a model that the price list does not have."""
    model, usage = request
    nano = _nano(cost(model, usage)) if family(model) is not None else 0
    return ModelCost(_name(model), nano, *_tokens(usage, _OF_USAGE))


def list_price(request: Request) -> float | None:
    """Return the list price of a model request in US dollars, None for a model that the price list does not have."""
    model, usage = request
    return _nano(cost(model, usage)) / NANO if family(model) is not None else None


_OF_MODEL = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
_OF_USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
TOKEN_ATTRIBUTES = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    CACHE_WRITE,
)
_SURCHARGES = ("agent.usage.cache_creation_1h_input_tokens", "agent.usage.web_search_requests")


def _parts(used: Mapping[str, Mapping[str, float]]) -> Iterable[ModelCost]:
    dearest = sorted(used.items(), key=lambda item: item[1].get("costUSD", 0.0), reverse=True)
    parts = (
        ModelCost(_name(model), _nano(each.get("costUSD", 0.0)), *_tokens(each, _OF_MODEL)) for model, each in dearest
    )
    return merged(part for part, _ in zip(parts, range(MAX_MODELS), strict=False))


def merged(parts: Iterable[ModelCost]) -> list[ModelCost]:
    """Add up the parts by model: names that differ beyond their maximum length are one model."""
    by_model: dict[str, ModelCost] = {}
    for part in parts:
        before = by_model.get(part.model)
        sums = map(sum, zip(before[1:], part[1:], strict=True)) if before is not None else part[1:]
        by_model[part.model] = ModelCost(part.model, *sums)
    return list(by_model.values())


def _name(model: str) -> str:
    return single_line(brief(model), _MAX_NAME)


def _nano(usd: float) -> int:
    return round(usd * NANO) if 0 <= usd <= MAX_COST_USD else 0


def _tokens(usage: Mapping[str, Any], keys: Iterable[str]) -> list[int]:
    return [_count(usage.get(key)) for key in keys]


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value <= MAX_TOKENS else 0
