"""``host_client sandboxes``: what of ours is in E2B, and the removal of what a killed host left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from host_client.errors import ConfigurationError

from ._failures import told
from ._help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from host_client.sandbox.e2b.inventory import Listed

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="List and remove sandboxes in E2B.")

COLUMNS = ("sandbox", "state", "session", "host", "user", "started", "ends", "prompt")
FIRST_TO_GO = ("prompt", "started", "ends", "user", "host")
SHORTEST_PROMPT = 12
"""Cells of a prompt that are worth showing."""

UserId = Annotated[str | None, typer.Option(help="Only those of this user.")]
TenantId = Annotated[str | None, typer.Option(help="Only those of this tenant.")]


@app.command(name="list", cls=PlainCommand)
def list_sandboxes(
    user_id: UserId = None,
    tenant_id: TenantId = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Show the sandboxes of sessions, running and paused; without a terminal as columns with tabs between them."""
    now = datetime.now(UTC)
    found = asyncio.run(_found(user_id, tenant_id))
    if as_json:
        for each in found:
            typer.echo(json.dumps(_fields(each, now), ensure_ascii=False))
    elif not found:
        typer.echo("no sandboxes", err=True)
    else:
        rows = [COLUMNS, *(_row(each, now) for each in found)]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in lined_up(rows, width):
            typer.echo(line)


def _host(each: Listed, now: datetime) -> str | None:
    if each.state == "paused":
        return None
    # A session that is to be kept is not abandoned, and its host may be gone all the same.
    return "gone" if replace(each, keep="").is_abandoned(now) else "alive"


def _fields(each: Listed, now: datetime) -> dict[str, str | None]:
    return {
        "sandbox_id": each.sandbox_id,
        "state": each.state,
        "session_id": each.session_id,
        "user_id": each.user_id or None,
        "tenant_id": each.tenant_id or None,
        "template": each.template,
        "started_at": each.started_at.isoformat(),
        "ends_at": None if each.state == "paused" else each.end_at.isoformat(),
        "host": _host(each, now),
        "keep": each.keep or None,
        "prompt": each.prompt or None,
    }


def _row(each: Listed, now: datetime) -> tuple[str, ...]:
    from ._render import visible  # imports rich, which is not needed for --help

    started, ends = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (each.started_at, each.end_at))
    ends = "" if each.state == "paused" else ends  # E2B's time for it means nothing any more
    words = (each.sandbox_id, each.state, each.session_id, _host(each, now) or "", each.user_id, started, ends)
    return tuple(" ".join(visible(word).split()) for word in (*words, each.prompt))


def lined_up(rows: Sequence[tuple[str, ...]], width: int | None) -> Iterator[str]:
    """Yield rows with tabs between the cells, or lined up in as many columns as fit into ``width`` cells.

    Columns go in the order of `FIRST_TO_GO`, the others never; none is cut but the prompt.
    """
    if width is None:
        yield from ("\t".join(row) for row in rows)
        return
    from rich.cells import cell_len, set_cell_size  # not needed for --help

    widths = [max(cell_len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    shown = list(range(len(COLUMNS)))
    for name in FIRST_TO_GO:
        if sum(widths[n] + 2 for n in shown) - 2 <= width:
            break
        column = COLUMNS.index(name)
        room = width - sum(widths[n] + 2 for n in shown if n != column)
        if name == COLUMNS[-1] and room >= SHORTEST_PROMPT:
            widths[column] = room
        else:
            shown.remove(column)
    for row in rows:
        yield "  ".join(set_cell_size(row[n], widths[n]) for n in shown).rstrip()


@app.command(cls=PlainCommand)
def sweep(
    user_id: UserId = None,
    tenant_id: TenantId = None,
    paused: Annotated[
        bool, typer.Option("--paused", help="Paused ones too: their sessions cannot be resumed any more.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="All of ours: of living hosts and paused ones too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
) -> None:
    """Remove the running sandboxes whose host is gone."""
    now = datetime.now(UTC)
    chosen = [
        each.sandbox_id
        for each in asyncio.run(_found(user_id, tenant_id))
        if every or each.is_abandoned(now) or (paused and each.state == "paused")
    ]
    failed = {} if dry_run else asyncio.run(_remove(chosen))
    for sandbox_id in chosen:
        why = failed.get(sandbox_id)
        typer.echo(f"{sandbox_id} {'would be removed' if dry_run else f'not removed: {why}' if why else 'removed'}")
    if not chosen:
        typer.echo("nothing to remove")
    raise typer.Exit(1 if failed else 0)


async def _found(user_id: str | None, tenant_id: str | None) -> list[Listed]:
    with told("host_client sandboxes"):
        if not os.environ.get("E2B_API_KEY"):
            raise ConfigurationError("no key for E2B: set E2B_API_KEY (e2b.dev/dashboard)")
        from host_client.sandbox.e2b.inventory import sandboxes  # imports e2b, 0.3 s

        wanted = {"user.id": user_id, "tenant.id": tenant_id}
        return await sandboxes(os.environ, {name: value for name, value in wanted.items() if value})


async def _remove(ids: list[str]) -> dict[str, str]:
    from host_client.sandbox.e2b.inventory import remove  # imports e2b, 0.3 s

    return await remove(os.environ, ids)
