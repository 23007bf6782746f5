"""What a turn came to, in whole numbers and by model: what metrics and the ledger both count. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from agent_runner.contract.prices import family, of_tokens
from agent_runner.contract.protocol import ResultData
from agent_runner.contract.sanitize import brief, single_line

NANO = 1_000_000_000
"""A US dollar in the unit of all sums: integers add up exactly."""

MAX_COST_USD = 100_000.0
MAX_TOKENS = 10**12
"""What is beyond is no turn's: a sandbox is not trusted, and one forged figure must not spoil a sum."""

_NUMBER = (int, float)
MAX_MODELS = 20
UNKNOWN = "unknown"
_MAX_NAME = 128


class ModelCost(NamedTuple):
    """One model's share of a turn. ``input_tokens`` leaves cached ones out, as Anthropic bills."""

    model: str
    nano: int
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0


Request = tuple[str, tuple[int, int, int, int]]
"""What one model request used: the model, and tokens in the order that a `ModelCost` has them in."""


class TurnCost(NamedTuple):
    """A turn's cost in 1e-9 US dollars, and its parts, whose costs add up to it.

    ``agrees`` is False where the models' own sum was another: the turn's cost is the one that counts.
    """

    nano: int
    parts: tuple[ModelCost, ...]
    agrees: bool


def turn_of(data: ResultData, model: str | None) -> TurnCost:
    """Return a turn's figures; ``model`` is the session's. Raise ValueError for a cost that is none."""
    if not 0 <= data.cost_usd <= MAX_COST_USD:
        raise ValueError(f"a turn's cost of {data.cost_usd} US dollars")
    nano = round(data.cost_usd * NANO)
    main = _name(model) if model else UNKNOWN
    used = data.turn_model_usage
    if not used:
        return TurnCost(nano, (ModelCost(main, nano, *_tokens(data.usage, _OF_USAGE)),), True)
    parts = list(_parts(used))
    missing = nano - sum(part.nano for part in parts)
    if abs(missing) <= len(parts):  # each was rounded
        largest = max(range(len(parts)), key=lambda index: parts[index].nano)
        parts[largest] = parts[largest]._replace(nano=parts[largest].nano + missing)
        return TurnCost(nano, tuple(parts), True)
    if missing < 0:
        parts, missing = [part._replace(nano=0) for part in parts], nano
    return TurnCost(nano, tuple(merged([*parts, ModelCost(main, missing)])), False)


def request_of(attributes: Mapping[str, Any]) -> Request:
    """Return what a model request's span says that it used."""
    model = attributes.get("gen_ai.response.model") or attributes.get("gen_ai.request.model")
    model = model[:_MAX_NAME] if isinstance(model, str) and model else UNKNOWN  # a sandbox may say anything
    all_input, output, read, created = _tokens(attributes, TOKEN_ATTRIBUTES)
    # The conventions count cached tokens in; the price list, as the API, does not.
    fresh = all_input - read - created
    return model, (fresh if fresh > 0 else 0, output, read, created)


def priced(request: Request) -> ModelCost:
    """Return what a model request came to, at list price; nothing where the list has none."""
    model, tokens = request
    return ModelCost(_name(model), _list_nano(request) or 0, *tokens)


def list_price(request: Request) -> float | None:
    """Return the same in US dollars; None where the list has none."""
    nano = _list_nano(request)
    return nano / NANO if nano is not None else None


def _list_nano(request: Request) -> int | None:
    model, tokens = request
    return _nano(of_tokens(model, *tokens)) if family(model) is not None else None


_OF_MODEL = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
_OF_USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
TOKEN_ATTRIBUTES = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
)


def _parts(used: Mapping[str, Mapping[str, float]]) -> Iterable[ModelCost]:
    dearest = sorted(used.items(), key=lambda item: item[1].get("costUSD", 0.0), reverse=True)
    parts = (
        ModelCost(_name(model), _nano(each.get("costUSD", 0.0)), *_tokens(each, _OF_MODEL)) for model, each in dearest
    )
    return merged(part for part, _ in zip(parts, range(MAX_MODELS), strict=False))


def merged(parts: Iterable[ModelCost]) -> list[ModelCost]:
    """Return one part a model: two names may be one when cut."""
    found: dict[str, ModelCost] = {}
    for part in parts:
        before = found.get(part.model)
        sums = map(sum, zip(before[1:], part[1:], strict=True)) if before is not None else part[1:]
        found[part.model] = ModelCost(part.model, *sums)
    return list(found.values())


def _name(model: str) -> str:
    return single_line(brief(model), _MAX_NAME)  # a sandbox may say anything


def _nano(usd: float) -> int:
    return round(usd * NANO) if 0 <= usd <= MAX_COST_USD else 0


def _tokens(usage: Mapping[str, Any], keys: Iterable[str]) -> list[int]:
    # Nearly all are whole numbers, for which there is no call.
    return [told if type(told) is int and 0 <= told <= MAX_TOKENS else _count(told) for told in map(usage.get, keys)]


def _count(value: object) -> int:
    return int(value) if isinstance(value, _NUMBER) and 0 <= value <= MAX_TOKENS else 0
