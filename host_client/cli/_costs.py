"""``host_client costs``: prints the sums of one or several ledgers by user, tenant, model, day and other keys."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from host_client.telemetry.costs.report import Selection, Total

_CENTS_FROM = 100 * 10**9
"""Total in 1e-9 US dollars from which the table shows cents, and not hundredths of a cent."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters at the beginning of a cell that make a spreadsheet compute it."""


def costs(
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Sum by user, tenant, tier, model, day, month, error or attribute:NAME; twice for two. Default: user."
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", "--since", help="Only turns that ended since this UTC day or time.")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", help="Only turns that ended up to the end of this UTC day, or before this time."),
    ] = None,
    month: Annotated[str | None, typer.Option(help="Only turns that ended in this UTC month: 2026-11.")] = None,
    user: Annotated[list[str] | None, typer.Option(help="Only this user. Repeatable.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant. Repeatable.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model. Repeatable.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only sessions with this attribute. Repeatable.")
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Ledger, or a directory of *.sqlite. Repeatable. Default: SANDSPAN_LEDGER."),
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML file with prices in place of those of the ledger.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout, without the total.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show the costs of turns from the ledger, which has every run of this command and of the service, sampled or not.

    Sessions of your own program are in it if it calls `initialize_telemetry`, or if its environment names an exporter.
    """
    from host_client.telemetry.costs.ledger import LedgerError
    from host_client.telemetry.costs.price_list import read_price_list
    from host_client.telemetry.costs.report import Selection, add_up

    keys = list(dict.fromkeys(by or ["user"]))
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json cannot be combined")
    try:
        selection = Selection(
            *_period(start, end, month), _accepted(user or [], tenant or [], model or [], attribute or [])
        )
        price_list = read_price_list(prices) if prices is not None else None
        rows, total = add_up(_files(ledger) if ledger else [_own_ledger()], keys, selection, price_list)
    except (ValueError, LedgerError) as error:
        typer.echo(f"host_client costs: {error}", err=True)
        raise typer.Exit(2) from None
    if as_csv:
        _write_csv(keys, rows, total)
    elif as_json:
        typer.echo(json.dumps(_output(keys, start, selection, rows, total), indent=2))
    else:
        _print(keys, rows, total, selection)
    if price_list is not None and price_list.unpriced:
        unpriced = ", ".join(sorted(price_list.unpriced))
        typer.echo(f"host_client costs: {prices} has no price for {unpriced}: their costs are the ledger's", err=True)


def _own_ledger() -> Path:
    from host_client.telemetry.setup.environment import telemetry_config

    path = telemetry_config(os.environ)[0].ledger
    if path is None:
        raise ValueError("there is no ledger: SANDSPAN_LEDGER is off, or neither it nor HOME is set")
    return path


def _files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files and the ``*.sqlite`` files below the given directories."""
    files: list[Path] = []
    for path in paths:
        below = sorted(path.rglob("*.sqlite")) if path.is_dir() else [path]
        if not below:
            raise ValueError(f"--ledger {path}: the directory has no *.sqlite file")
        files += below
    return files


def _period(start: str | None, end: str | None, month: str | None) -> tuple[float, float]:
    """Return the beginning and the end of the turns to show, in seconds since the epoch."""
    if month is None:
        period = _moment("--from", start, 0.0), _moment("--to", end, math.inf)
        if period[0] >= period[1]:
            raise ValueError(f"--from {start} is not before --to {end}")
        return period
    if start is not None or end is not None:
        raise ValueError("--month cannot be combined with --from, --since or --to")
    try:
        first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
        return first.timestamp(), (first + timedelta(days=31)).replace(day=1).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"--month {month!r}: takes a year and a month, such as 2026-11") from None


def _moment(option: str, text: str | None, default: float) -> float:
    """Return a day or time, in UTC unless it has a time zone; a day of ``--to`` ends with it."""
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
        if option == "--to" and len(text) <= len("2026-11-24"):  # a day; any time is longer
            moment += timedelta(days=1)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{option} {text!r}: takes a day or time, such as 2026-11-24 or 2026-11-24T12:00:00") from None


def _accepted(user: list[str], tenant: list[str], model: list[str], attributes: Sequence[str]) -> dict[str, list[str]]:
    """Return the accepted values by the key that they are values of."""
    from host_client.telemetry.costs.report import ATTRIBUTE

    accepted = {"user": user, "tenant": tenant, "model": model}
    for attribute in attributes:
        name, equals, value = attribute.partition("=")
        if not equals:
            raise ValueError(f"--attribute {attribute!r}: takes NAME=VALUE, such as team=search")
        accepted.setdefault(ATTRIBUTE + name, []).append(value)
    return {key: values for key, values in accepted.items() if values}


def _output(
    by: Sequence[str], since: str | None, selection: Selection, rows: Sequence[Total], total: Total
) -> dict[str, Any]:
    return {
        "by": by[0] if len(by) == 1 else by,
        "since": since,
        "from": _shown_moment(selection.start),
        "to": _shown_moment(selection.end),
        "rows": [dict(zip(by, row.keys, strict=True)) | _figures(row) for row in rows],
        "total": _figures(total),
    }


def _figures(of: Total) -> dict[str, Any]:
    return {
        "turns": of.turns,
        "cost_usd": of.nano_usd / 1e9,
        "cost_nano_usd": of.nano_usd,
        "input_tokens": of.input_tokens,
        "output_tokens": of.output_tokens,
        "cache_read_tokens": of.cache_read_tokens,
        "cache_creation_tokens": of.cache_creation_tokens,
        "estimated_turns": of.estimated_turns,
        "estimated_nano_usd": of.estimated_nano_usd,
        "failed_turns": of.failed_turns,
        "failed_nano_usd": of.failed_nano_usd,
    }


def _shown_moment(seconds: float) -> str | None:
    """Return a bound of the period in UTC, None if there is no bound."""
    return datetime.fromtimestamp(seconds, UTC).isoformat() if 0.0 != seconds != math.inf else None


def _write_csv(by: Sequence[str], rows: Sequence[Total], total: Total) -> None:
    """Write rows to stdout, amounts in US dollars with all their decimals."""
    writer = csv.writer(sys.stdout)
    writer.writerow([*by, *_csv_cells(total)])
    for row in rows:
        keys = [key or "" for key in row.keys]
        # Models are named by sandboxes, which are not trusted.
        safe = [f"'{key}" if key.startswith(_FORMULA) else key for key in keys]
        writer.writerow([*safe, *_csv_cells(row).values()])


def _csv_cells(of: Total) -> dict[str, str]:
    figures = _figures(of)
    del figures["cost_usd"]
    return {
        name.replace("nano_usd", "usd"): f"{Decimal(figure).scaleb(-9):f}" if name.endswith("usd") else str(figure)
        for name, figure in figures.items()
    }


def _print(by: Sequence[str], rows: Sequence[Total], total: Total, selection: Selection) -> None:
    from rich.console import Console  # not needed for --help
    from rich.table import Table

    from ._render import visible

    if not rows:
        typer.echo("the ledger has no such costs (demos are never recorded)")
        return
    table = Table(box=None, show_footer=True)
    for key in by:
        table.add_column(f"{key} (UTC)" if key in ("day", "month") else key, overflow="fold")
    table.columns[0].footer = "total"
    columns = _columns([*rows, total])
    for name, cells in columns.items():
        table.add_column(name, justify="right", footer=cells[-1])
    for number, row in enumerate(rows):
        table.add_row(*(visible(key or "-") for key in row.keys), *(cells[number] for cells in columns.values()))
    console = Console(highlight=False, markup=False, emoji=False)  # a name such as [red] stays as it is
    if not console.is_terminal:
        console.width = 200  # a file or pipe has no width
    console.print(table)
    for word, moment in (("from", _shown_moment(selection.start)), ("before", _shown_moment(selection.end))):
        if moment is not None:
            console.print(f"{word} {moment.replace('T', ' ').replace('+00:00', ' UTC')}")
    if total.estimated_turns:
        console.print(
            f"turns that ended without their cost: {total.estimated_turns:,}."
            " It is estimated from their model requests, as far as these are known",
            style="yellow",
        )


def _columns(rows: Sequence[Total]) -> dict[str, list[str]]:
    """Return the cells of each column; the last row is the total."""
    total = rows[-1]
    return {
        "turns": [f"{row.turns:,}" for row in rows],
        "cost": _rounded([row.nano_usd for row in rows]),
        **({"failed": _rounded([row.failed_nano_usd for row in rows])} if total.failed_turns else {}),
        **({"estimated": _rounded([row.estimated_nano_usd for row in rows])} if total.estimated_turns else {}),
        "input": [f"{row.input_tokens:,}" for row in rows],
        "output": [f"{row.output_tokens:,}" for row in rows],
        "cache read": [f"{row.cache_read_tokens:,}" for row in rows],
        "cache written": [f"{row.cache_creation_tokens:,}" for row in rows],
    }


def _rounded(amounts: Sequence[int]) -> list[str]:
    """Return amounts in cents or hundredths of a cent, so that they add up to the last, which is their total."""
    *parts, total = amounts
    decimals = 2 if total >= _CENTS_FROM else 4
    unit = 10 ** (9 - decimals)
    units = [part // unit for part in parts]
    missing = (total + unit // 2) // unit - sum(units)
    # Those that lost most by rounding down are rounded up.
    for index in sorted(range(len(parts)), key=lambda index: -(parts[index] % unit))[:missing]:
        units[index] += 1
    return [f"${Decimal(count).scaleb(-decimals):,f}" for count in (*units, sum(units))]
