"""``host_client sandboxes``: lists Sandspan's sandboxes in E2B, and removes those whose host has ended."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from host_client.signals import run_until_signal

from ._checks import check_e2b_key
from ._failures import reported_errors
from ._help import PlainCommand, PlainGroup
from ._table import print_table

if TYPE_CHECKING:
    from host_client.sandbox.e2b.inventory import Listed

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="List and remove sandboxes in E2B.")

COLUMNS = ("sandbox", "state", "session", "host", "user", "started", "ends", "prompt")
DROPPABLE = ("prompt", "started", "ends", "user", "host")

UserId = Annotated[str | None, typer.Option(help="Only sandboxes of this user.")]
TenantId = Annotated[str | None, typer.Option(help="Only sandboxes of this tenant.")]


@app.command(name="list", cls=PlainCommand)
def list_sandboxes(
    user_id: UserId = None,
    tenant_id: TenantId = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List the sandboxes of sessions, running and paused; without a terminal, columns are separated by tabs."""
    now = datetime.now(UTC)
    found = run_until_signal(_listed(user_id, tenant_id))
    if as_json:
        for each in found:
            typer.echo(json.dumps(_fields(each, now), ensure_ascii=False))
    elif not found:
        typer.echo("no sandboxes", err=True)
    else:
        print_table(COLUMNS, (_row(each, now) for each in found), DROPPABLE)


def _host(each: Listed, now: datetime) -> str | None:
    if each.state == "paused":
        return None
    # A sandbox that is to be kept never counts as abandoned, although its host may have ended.
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
    started, ends = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (each.started_at, each.end_at))
    ends = "" if each.state == "paused" else ends  # E2B's end time of a paused sandbox has no meaning
    host = _host(each, now) or ""
    return each.sandbox_id, each.state, each.session_id, host, each.user_id, started, ends, each.prompt


@app.command(cls=PlainCommand)
def sweep(
    user_id: UserId = None,
    tenant_id: TenantId = None,
    paused: Annotated[
        bool, typer.Option("--paused", help="Also remove paused ones; their sessions can then not be resumed.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Remove all of Sandspan's, also those in use.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
) -> None:
    """Remove the running sandboxes whose host has ended."""
    now = datetime.now(UTC)
    chosen = [
        each.sandbox_id
        for each in run_until_signal(_listed(user_id, tenant_id))
        if every or each.is_abandoned(now) or (paused and each.state == "paused")
    ]
    failed = {} if dry_run else run_until_signal(_remove(chosen))
    for sandbox_id in chosen:
        why = failed.get(sandbox_id)
        typer.echo(f"{sandbox_id} {'would be removed' if dry_run else f'not removed: {why}' if why else 'removed'}")
    if not chosen:
        typer.echo("nothing to remove")
    raise typer.Exit(1 if failed else 0)


async def _listed(user_id: str | None, tenant_id: str | None) -> list[Listed]:
    with reported_errors("host_client sandboxes"):
        check_e2b_key(os.environ)
        from host_client.sandbox.e2b.inventory import sandboxes  # imports e2b, 0.3 s

        metadata = {"user.id": user_id, "tenant.id": tenant_id}
        return await sandboxes(os.environ, {name: value for name, value in metadata.items() if value})


async def _remove(ids: list[str]) -> dict[str, str]:
    from host_client.sandbox.e2b.inventory import remove  # imports e2b, 0.3 s

    return await remove(os.environ, ids)
