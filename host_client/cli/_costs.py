"""``host_client costs``: what was spent, by whom, on which model, when. From the ledger."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from host_client.telemetry.costs.ledger import Ledger, Total

By = Literal["user", "tenant", "model", "day"]  # the ledger's own, which is not imported for --help


def costs(
    by: Annotated[By, typer.Option(help="Sum by one of these; days are UTC's.")] = "user",
    since: Annotated[str | None, typer.Option(help="Only from this day or moment on: 2026-11-24, UTC.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show what turns cost, as noted in the ledger: every run of this command and of the service, sampled or not.

    Sessions of your own program are noted if it calls `initialize_telemetry`, or its environment names an exporter.
    """
    from host_client.telemetry.costs.ledger import LedgerError

    try:
        ledger, moment = _ledger(), _moment(since)
        rows, total = ledger.totals(by, moment), ledger.total(moment)
    except (ValueError, LedgerError) as error:
        typer.echo(f"host_client costs: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        told = {"by": by, "since": since, "rows": [_json(by, row) for row in rows], "total": _json(None, total)}
        typer.echo(json.dumps(told, indent=2))
    else:
        _print(by, rows, total)


def _ledger() -> Ledger:
    from host_client.telemetry.costs.ledger import Ledger
    from host_client.telemetry.setup.environment import telemetry_config

    path = telemetry_config(os.environ)[0].ledger
    if path is None:
        raise ValueError("there is no ledger: SANDSPAN_LEDGER is off, or neither it nor HOME is set")
    return Ledger(path)


def _moment(since: str | None) -> float | None:
    """Return a day or moment in seconds since the epoch; without a zone it is in UTC."""
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ValueError(f"--since {since!r}: takes a day, 2026-11-24, or a moment, 2026-11-24T12:00:00") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _json(by: str | None, of: Total) -> dict[str, Any]:
    return {
        **({by: of.key} if by is not None else {}),
        "turns": of.turns,
        "cost_usd": of.nano_usd / 1e9,
        "cost_nano_usd": of.nano_usd,
        "input_tokens": of.input_tokens,
        "output_tokens": of.output_tokens,
        "cache_read_tokens": of.cache_read_tokens,
        "cache_creation_tokens": of.cache_creation_tokens,
        "estimated_turns": of.estimated_turns,
        "estimated_nano_usd": of.estimated_nano_usd,
    }


def dollars(nano_usd: int) -> str:
    """Return an amount exactly, with two decimals or as many as it takes: what is shown adds up."""
    whole, _, decimals = f"{Decimal(nano_usd).scaleb(-9):.9f}".partition(".")
    return f"${int(whole):,}.{decimals.rstrip('0').ljust(2, '0')}"


def _print(by: str, rows: list[Total], total: Total) -> None:
    from rich.console import Console  # not needed for --help
    from rich.table import Table

    from ._render import visible

    if not rows:
        typer.echo("no costs were noted (those of demos never are)")
        return
    table = Table(by, box=None, show_footer=True)
    table.columns[0].footer = "total"
    estimates = total.estimated_turns > 0
    for name, value in _cells(total, estimates).items():
        table.add_column(name, justify="right", footer=value)
    for row in rows:
        table.add_row(visible(row.key or "-"), *_cells(row, estimates).values())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width of its own
    console.print(table)
    if estimates:
        console.print(
            f"turns that never told their cost: {total.estimated_turns:,}."
            " It is estimated by their model requests, as far as those are known",
            style="yellow",
        )


def _cells(of: Total, estimates: bool) -> dict[str, str]:
    return {
        "turns": f"{of.turns:,}",
        "cost": dollars(of.nano_usd),
        **({"estimated": dollars(of.estimated_nano_usd)} if estimates else {}),
        "input": f"{of.input_tokens:,}",
        "output": f"{of.output_tokens:,}",
        "cache read": f"{of.cache_read_tokens:,}",
        "cache written": f"{of.cache_creation_tokens:,}",
    }
