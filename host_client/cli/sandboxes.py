"""``host_client sandboxes``: what of ours is in E2B, and the removal of what a killed host left."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from host_client.errors import SandspanError

if TYPE_CHECKING:
    from host_client.sandbox.e2b.inventory import Listed

app = typer.Typer(no_args_is_help=True, help="List and remove sandboxes in E2B.")

UserId = Annotated[str | None, typer.Option(help="Only those of this user.")]
TenantId = Annotated[str | None, typer.Option(help="Only those of this tenant.")]


@app.command(name="list")
def list_sandboxes(user_id: UserId = None, tenant_id: TenantId = None) -> None:
    """Show the sandboxes of sessions, running and paused."""
    from rich.console import Console  # not needed for --help
    from rich.table import Table

    from .render import visible

    table = Table("sandbox", "state", "session", "user", "started", "ends", "host", "prompt", box=None)
    now = datetime.now(UTC)
    for each in asyncio.run(_found(user_id, tenant_id)):
        host = "gone" if each.is_abandoned(now) else "" if each.state == "paused" else "alive"
        times = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (each.started_at, each.end_at))
        words = (each.sandbox_id, each.state, each.session_id, each.user_id, *times, host, each.prompt)
        table.add_row(*map(visible, words))
    console = Console(highlight=False)
    console.print(table if table.row_count else "no sandboxes")


@app.command()
def sweep(
    user_id: UserId = None,
    tenant_id: TenantId = None,
    paused: Annotated[bool, typer.Option(help="Paused ones too: their sessions cannot be resumed any more.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All of ours: of living hosts and paused ones too.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say which.")] = False,
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
    if not os.environ.get("E2B_API_KEY"):
        typer.echo("host_client sandboxes: no key for E2B: set E2B_API_KEY (e2b.dev/dashboard)", err=True)
        raise typer.Exit(2)
    from host_client.sandbox.e2b.inventory import sandboxes  # imports e2b, 0.3 s

    wanted = {"user.id": user_id, "tenant.id": tenant_id}
    try:
        return await sandboxes(os.environ, {name: value for name, value in wanted.items() if value})
    except SandspanError as error:
        typer.echo(f"host_client: {error.error_type}: {error}", err=True)
        raise typer.Exit(3) from None


async def _remove(ids: list[str]) -> dict[str, str]:
    from host_client.sandbox.e2b.inventory import remove  # imports e2b, 0.3 s

    return await remove(os.environ, ids)
