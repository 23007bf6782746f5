"""``host_client costs``: prints the sums of the ledger by user, tenant, model or day."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from host_client.telemetry.costs.ledger import Ledger, Total

By = Literal["user", "tenant", "model", "day"]  # the same as the ledger's, which is not imported for --help


def costs(
    by: Annotated[By, typer.Option(help="Sum by one of these; days are in UTC.")] = "user",
    since: Annotated[str | None, typer.Option(help="Only turns since this day or time (UTC): 2026-11-24.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show the costs of turns from the ledger, which has every run of this command and of the service, sampled or not.

    Sessions of your own program are in it if it calls `initialize_telemetry`, or if its environment names an exporter.
    """
    from host_client.telemetry.costs.ledger import LedgerError

    try:
        ledger, moment = _ledger(), _moment(since)
        rows, total = ledger.totals(by, moment), ledger.total(moment)
    except (ValueError, LedgerError) as error:
        typer.echo(f"host_client costs: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        output = {"by": by, "since": since, "rows": [_json(by, row) for row in rows], "total": _json(None, total)}
        typer.echo(json.dumps(output, indent=2))
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
    """Return a day or time as seconds since the epoch; without a time zone it is in UTC."""
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ValueError(f"--since {since!r}: takes a day or time, such as 2026-11-24 or 2026-11-24T12:00:00") from None
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


def _print(by: str, rows: list[Total], total: Total) -> None:
    from rich.console import Console  # not needed for --help
    from rich.table import Table

    from ._render import visible

    if not rows:
        typer.echo("the ledger has no such costs (demos are never recorded)")
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
        console.width = 120  # a file or pipe has no width
    console.print(table)
    if estimates:
        console.print(
            f"turns that ended without their cost: {total.estimated_turns:,}."
            " It is estimated from their model requests, as far as these are known",
            style="yellow",
        )


def _cells(of: Total, estimates: bool) -> dict[str, str]:
    from ._render import dollars  # imports rich, which is not needed for --help

    return {
        "turns": f"{of.turns:,}",
        "cost": dollars(Decimal(of.nano_usd).scaleb(-9)),
        **({"estimated": dollars(Decimal(of.estimated_nano_usd).scaleb(-9))} if estimates else {}),
        "input": f"{of.input_tokens:,}",
        "output": f"{of.output_tokens:,}",
        "cache read": f"{of.cache_read_tokens:,}",
        "cache written": f"{of.cache_creation_tokens:,}",
    }
