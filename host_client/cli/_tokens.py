"""``host_client tokens``: who may use the service. It may run meanwhile, and heeds what is changed here."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from host_client.errors import ConfigurationError

from ._failures import told
from ._help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from host_client.store.base import Token, TokenStore

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Make, list and revoke the service's tokens.")

RoleName = Literal["viewer", "approver", "operator"]  # the store's own, which is not imported for --help
MAX_NAME = 100
MAX_DAYS = 3650
COLUMNS = ("id", "name", "tenant", "role", "created", "expires")

StoreUrl = Annotated[str | None, typer.Option("--store", help="The service's store: a path or redis://…")]


@app.command(cls=PlainCommand)
def create(
    tenant: Annotated[str, typer.Option(help="Whose sessions it is for.")],
    name: Annotated[str, typer.Option(help="Who or what has it; stands beside every decision.")],
    role: Annotated[RoleName, typer.Option(help="viewer reads, approver decides too, operator does all.")] = "viewer",
    expires_days: Annotated[int | None, typer.Option(help="Days after which it ends. Default: never.")] = None,
    store: StoreUrl = None,
) -> None:
    """Make a token and print it, this once: only its digest is kept."""
    with _told():
        for option, value in (("--tenant", tenant), ("--name", name)):
            _check_name(option, value)
        if expires_days is not None and not 1 <= expires_days <= MAX_DAYS:
            raise ConfigurationError(f"--expires-days takes 1 to {MAX_DAYS}")
        from host_client.store.tokens import new_token

        expires_at = time.time() + expires_days * 86_400 if expires_days is not None else None
        plaintext, token = new_token(name, tenant, role, expires_at)
        asyncio.run(_add(store, token))
    typer.echo(plaintext)
    until = f"until {_day(expires_at)} (UTC)" if expires_at is not None else "until it is revoked"
    typer.echo(f"{token.id}: {role} for {tenant}, {until}; keep it now, it is not shown again", err=True)


@app.command(name="list", cls=PlainCommand)
def list_tokens(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    store: StoreUrl = None,
) -> None:
    """Show who has tokens, expired ones too; never the tokens themselves."""
    with _told():
        found = asyncio.run(_all(store))
    if as_json:
        for each in found:
            typer.echo(json.dumps(_fields(each), ensure_ascii=False))
    elif not found:
        typer.echo("no tokens", err=True)
    else:
        _print([COLUMNS, *(_row(each) for each in found)])


@app.command(cls=PlainCommand)
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it: tok_….")],
    store: StoreUrl = None,
) -> None:
    """End a token; a service that has just seen it takes it for 5 seconds more."""
    with _told():
        if token_id.startswith("sst_"):
            raise ConfigurationError("takes the token's id (tok_…), not the token: see host_client tokens list")
        was_there = asyncio.run(_remove(store, token_id))
    if not was_there:
        typer.echo(f"host_client tokens: there is no token {token_id[:100]!r}: see host_client tokens list", err=True)
        raise typer.Exit(1)
    typer.echo(f"{token_id} revoked")


@contextmanager
def _told() -> Generator[None]:
    """Tell of an error in the block and exit: with 2 for a bad option or value, with 3 if the store cannot be used."""
    from host_client.store.base import StoreError

    with told("host_client tokens"):
        try:
            yield
        except StoreError as error:
            typer.echo(f"host_client tokens: {error}", err=True)
            raise typer.Exit(3) from None


def _check_name(option: str, value: str) -> None:
    if not value.strip() or len(value) > MAX_NAME or not value.isprintable():
        raise ConfigurationError(f"{option} takes 1 to {MAX_NAME} printable characters")


@asynccontextmanager
async def _opened(url: str | None) -> AsyncGenerator[TokenStore]:
    from host_client.store import open_tokens  # imports redis, which is not needed for --help

    store = open_tokens(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _add(url: str | None, token: Token) -> None:
    async with _opened(url) as store:
        await store.add_token(token)


def _looks(url: str | None) -> bool:
    """Whether there is a store to look into, as looking makes none; raise `StoreError` where one is named."""
    from host_client.store import is_to_be_made
    from host_client.store.base import StoreError

    missing = is_to_be_made(url)
    if missing is not None and url:
        raise StoreError(f"there is no store at {missing}: --store takes the one that the service has")
    return missing is None


async def _all(url: str | None) -> list[Token]:
    if not _looks(url):
        return []
    async with _opened(url) as store:
        return await store.tokens()


async def _remove(url: str | None, token_id: str) -> bool:
    if not _looks(url):
        return False
    async with _opened(url) as store:
        return await store.remove_token(token_id)


def _fields(token: Token) -> dict[str, str | None]:
    return {
        "id": token.id,
        "name": token.name,
        "tenant_id": token.tenant_id,
        "role": token.role,
        "created_at": _moment(token.created_at).isoformat(),
        "expires_at": _moment(token.expires_at).isoformat() if token.expires_at is not None else None,
    }


def _row(token: Token) -> tuple[str, ...]:
    from ._render import visible  # imports rich, which is not needed for --help

    until = "never"
    if token.expires_at is not None:
        until = _day(token.expires_at) if token.expires_at > time.time() else "expired"
    words = (token.id, token.name, token.tenant_id, token.role, _day(token.created_at), until)
    return tuple(" ".join(visible(word).split()) for word in words)


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows lined up at a terminal, else with tabs between the cells."""
    from rich.cells import cell_len, set_cell_size  # not needed for --help

    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        typer.echo("  ".join(set_cell_size(word, widths[n]) for n, word in enumerate(row)).rstrip())


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _day(seconds: float) -> str:
    return f"{_moment(seconds):%Y-%m-%d %H:%M:%S}"
