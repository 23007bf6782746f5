"""Read prices of models from a TOML file, and compute costs from tokens at these prices.

The file has a table for each model, or for all models whose id begins like its name; the longest name that matches
applies. Prices are in US dollars per million tokens.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

_MAX_NANO = 2**63 - 1
"""Maximum of an integer in SQLite, which forged numbers of tokens could exceed."""

_Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class ModelPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of one model's tokens. ``input`` excludes those that are read from the cache or written to it."""

    input: _Price
    output: _Price
    cache_read: _Price
    cache_creation: _Price


class PriceList:
    """Compute costs at the prices of models. ``unpriced`` collects the models without a price."""

    def __init__(self, prices: Mapping[str, ModelPrice]) -> None:
        self.unpriced: set[str] = set()
        self._prices = prices

    def nano_usd(self, model: str, nano_usd: int, *tokens: int) -> int:
        """Return the cost of input, output, read and written tokens in 1e-9 US dollars.

        A cost stays as it is if the model has no price, or if the tokens are not known.
        """
        names = filter(model.startswith, self._prices)
        if (name := max(names, key=len, default=None)) is None:
            self.unpriced.add(model)
            return nano_usd
        if not any(tokens):
            return nano_usd
        prices = msgspec.structs.astuple(self._prices[name])
        # A dollar per million tokens is 1,000 billionths per token.
        return min(round(sum(count * price * 1000 for count, price in zip(tokens, prices, strict=True))), _MAX_NANO)


def read_price_list(path: Path) -> PriceList:
    """Return the prices in a TOML file; raise ValueError for a file that is not valid."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a TOML file with prices: {error}") from None
    prices: dict[str, ModelPrice] = {}
    for name, table in tables.items():
        try:
            prices[name] = msgspec.convert(table, ModelPrice)
        except msgspec.ValidationError as error:
            raise ValueError(f"{path}: [{name}] takes {', '.join(ModelPrice.__struct_fields__)}: {error}") from None
    return PriceList(prices)
