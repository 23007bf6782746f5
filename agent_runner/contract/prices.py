"""Compute the list price of model requests from the usage that the Messages API reports. Pure.

The table is that of the pinned CLI; a test compares the two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast


class Price(NamedTuple):
    """US dollars per million tokens; ``long`` is the price of prompts above 100,000 tokens, if it differs."""

    input: float
    output: float
    cache_read: float
    long: Price | None = None


# A key is the beginning of a model's id; the longest key that matches applies.
PRICES = {
    "claude-3-5-haiku": Price(0.8, 4, 0.08),
    "claude-haiku-4-5": Price(1, 5, 0.1),
    "claude-haiku-5-5": Price(0.1, 0.5, 0.01, long=Price(0.5, 2.5, 0.05)),
    "claude-3-5-sonnet": Price(3, 15, 0.3),
    "claude-3-7-sonnet": Price(3, 15, 0.3),
    "claude-sonnet-4": Price(3, 15, 0.3),
    "claude-sonnet-5": Price(2, 10, 0.2),
    "claude-sonnet-5-5": Price(2, 10, 0.1),
    "claude-opus-4": Price(15, 75, 1.5),
    "claude-opus-4-5": Price(5, 25, 0.5),
    "claude-opus-4-6": Price(5, 25, 0.5),
    "claude-opus-4-7": Price(5, 25, 0.5),
    "claude-opus-4-8": Price(5, 25, 0.5),
    "claude-opus-5": Price(5, 25, 0.5),
    "claude-opus-5-5": Price(4, 20, 0.2),
    "claude-fable-5": Price(10, 50, 1),
    "claude-fable-5-1": Price(10, 50, 0.25),
    "claude-fable-5-2": Price(8, 40, 0.2),
    "claude-mythos-5": Price(10, 50, 1),
    "claude-mythos-5-1": Price(10, 50, 0.25),
    "claude-mythos-5-2": Price(8, 40, 0.2),
}
DEAREST = max(PRICES.values(), key=lambda price: price.output)
"""Price of an unknown model: the highest, so that a budget also holds for a model that the table lacks."""

_LONG_PROMPT = 100_000
_WRITE_5M, _WRITE_1H = 1.25, 2.0
_FAST = 6.0
_IN_THE_US = 1.1
_WEB_SEARCH = 0.01


@lru_cache(256)
def family(model: str) -> str | None:
    """Return the key of the price table that matches a model's id, or None for an unknown model."""
    return max((name for name in PRICES if model.startswith(name)), key=len, default=None)


def price_of(model: str) -> Price:
    """Return a model's list price; for an unknown model, that of the most expensive one."""
    known = family(model)
    return PRICES[known] if known is not None else DEAREST


def cost(model: str, usage: dict[str, Any]) -> float:
    """Return the list price of one model request in US dollars, from the API's ``usage``."""
    fresh, read = _count(usage, "input_tokens"), _count(usage, "cache_read_input_tokens")
    written = _count(usage, "cache_creation_input_tokens")
    for_an_hour = min(_count(usage.get("cache_creation"), "ephemeral_1h_input_tokens"), written)
    usd = of_tokens(model, fresh, _count(usage, "output_tokens"), read, written, for_an_hour)
    usd *= _FAST if usage.get("speed") == "fast" else 1.0
    usd *= _IN_THE_US if usage.get("inference_geo") == "us" else 1.0
    return usd + _count(usage.get("server_tool_use"), "web_search_requests") * _WEB_SEARCH


def of_tokens(model: str, fresh: int, output: int, read: int, written: int, for_an_hour: int = 0) -> float:
    """Return the list price of tokens in US dollars.

    ``fresh`` input tokens are neither ``read`` from the cache nor ``written`` to it; ``for_an_hour`` is the part of
    ``written`` that is cached for an hour.
    """
    price = price_of(model)
    if price.long is not None and fresh + read + written > _LONG_PROMPT:
        price = price.long
    writes = (written - for_an_hour) * _WRITE_5M + for_an_hour * _WRITE_1H
    return ((fresh + writes) * price.input + read * price.cache_read + output * price.output) / 1e6


def _count(usage: object, name: str) -> int:
    count = cast("dict[str, object]", usage).get(name) if isinstance(usage, dict) else None
    return max(0, count) if isinstance(count, int) else 0
