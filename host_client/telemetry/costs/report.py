"""Add up the turns of one or several ledgers. Reading changes no file."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ._ledger_file import SUMMED, open_to_read
from .price_list import PriceList

BUSY_SECONDS = 5.0
"""Seconds to wait for the lock of another process."""

ATTRIBUTE = "attribute:"
"""Beginning of the key that stands for an attribute of the session, as in ``attribute:team``."""

_KEYS = {
    "user": "turns.user",
    "tenant": "turns.tenant",
    "tier": "turns.tier",
    "model": "parts.model",
    "day": "date(turns.ended_at, 'unixepoch')",
    "month": "strftime('%Y-%m', turns.ended_at, 'unixepoch')",
    "error": "turns.error_type",
}
_DATES = ("day", "month")
BY = tuple(_KEYS)
"""The keys to sum by, besides those of attributes. Days and months are those of UTC."""

_PART = ("model", *SUMMED)
_HALF = 32


class Selection(NamedTuple):
    """The turns to add up: those that ended from ``start`` to before ``end``, in seconds since the epoch.

    ``only`` has the accepted values of keys; an empty one accepts turns without the key.
    """

    start: float = 0.0
    end: float = math.inf
    only: Mapping[str, Sequence[str]] = {}


ALL = Selection()
"""All turns."""


@dataclass(frozen=True)
class Total:
    """The sums of the turns with the same ``keys``, of which one is None for turns that have none.

    ``failed`` and ``estimated`` are parts of ``turns`` and of ``nano_usd``: of turns that ended in an error, and of
    turns whose cost was not reported.
    """

    keys: tuple[str | None, ...]
    turns: int
    nano_usd: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    estimated_turns: int = 0
    estimated_nano_usd: int = 0
    failed_turns: int = 0
    failed_nano_usd: int = 0


def add_up(
    paths: Sequence[Path], by: Sequence[str], selection: Selection = ALL, prices: PriceList | None = None
) -> tuple[list[Total], Total]:
    """Return the sums by ``by`` and the total of all, at other prices than the ledger's if some are given.

    Rows are in the order of the highest cost, days and months in theirs. A turn that is in several files counts once; a
    file that does not exist has none. Raise ValueError for an unknown key, and `LedgerError` for an unreadable file.
    """
    with contextlib.closing(open_to_read(paths, BUSY_SECONDS)) as connection:
        if prices is not None:  # the connection is to a copy
            connection.create_function("priced", len(_PART), prices.nano_usd)
            of_period = "turn_id IN (SELECT id FROM turns WHERE ended_at >= ? AND ended_at < ?)"
            update = f"UPDATE parts SET nano_usd = priced({', '.join(_PART)}) WHERE {of_period}"  # noqa: S608 - of constants
            connection.execute(update, selection[:2])
        rows, total = _sums(connection, by, selection), _sums(connection, (), selection)
    return _ordered(rows, by), next(iter(total), Total((), 0, 0, 0, 0, 0, 0))


def _sums(connection: sqlite3.Connection, by: Sequence[str], selection: Selection) -> list[Total]:
    keys = [_key(name) for name in by]
    accepted = [(*_key(name), tuple(values)) for name, values in selection.only.items()]
    conditions = [f"COALESCE({key}, '') IN ({', '.join('?' * len(values))})" for key, _, values in accepted]
    failed = "(turns.error_type IS NOT NULL)"
    columns = [
        *(f"parts.{column}" for column in SUMMED),
        "parts.nano_usd * turns.estimated",
        f"parts.nano_usd * {failed}",
    ]
    query = f"""
        SELECT {"".join(f"{key}, " for key, _ in keys)} COUNT(DISTINCT turns.id),
            COUNT(DISTINCT CASE WHEN turns.estimated THEN turns.id END),
            COUNT(DISTINCT CASE WHEN {failed} THEN turns.id END),
            {", ".join(f"SUM({column} >> {_HALF}), SUM({column} & {2**_HALF - 1})" for column in columns)}
        FROM turns JOIN parts ON parts.turn_id = turns.id
        WHERE {" AND ".join(["turns.ended_at >= ?", "turns.ended_at < ?", *conditions])}
        GROUP BY {", ".join(str(n + 1) for n in range(len(keys))) or "NULL"}
    """  # noqa: S608 - of constants
    parameters = [value for _, names in keys for value in names]
    parameters += [selection.start, selection.end]
    parameters += [value for _, names, values in accepted for value in (*names, *values)]
    return [_total(row, len(keys)) for row in connection.execute(query, parameters)]


def _key(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the SQL of a key and its parameters; raise ValueError for an unknown key."""
    if name.startswith(ATTRIBUTE):
        value = "(SELECT value FROM json_each(turns.attributes) WHERE key = ?)"
        return value, (name.removeprefix(ATTRIBUTE),)
    if name not in _KEYS:
        raise ValueError(f"{name!r} is not one of {', '.join(BY)}, {ATTRIBUTE}NAME")
    return _KEYS[name], ()


def _total(row: tuple[Any, ...], keys: int) -> Total:
    """Join the sums of upper and lower halves: SQLite's sums end at 2**63, which forged turns could exceed."""
    turns, estimated, failed, *halves = row[keys:]
    sums = [(high << _HALF) + low for high, low in zip(halves[::2], halves[1::2], strict=True)]
    return Total(row[:keys], turns, *sums[:-2], estimated, sums[-2], failed, sums[-1])  # pyright: ignore[reportCallIssue] - five sums


def _ordered(rows: list[Total], by: Sequence[str]) -> list[Total]:
    """Sort rows by each key in turn: dates in their order, other keys by the highest cost of all their rows."""
    costs = Counter[tuple[str | None, ...]]()
    for row in rows:
        for length in range(1, len(by) + 1):
            costs[row.keys[:length]] += row.nano_usd

    def rank(row: Total) -> list[tuple[int, str]]:
        return [(0 if name in _DATES else -costs[row.keys[: n + 1]], row.keys[n] or "") for n, name in enumerate(by)]

    return sorted(rows, key=rank)
