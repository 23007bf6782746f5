"""``host_client tokens``: creates, lists and revokes the tokens of a service, also while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from host_client.errors import ConfigurationError
from host_client.signals import run_until_signal

from ._failures import reported_errors
from ._help import PlainCommand, PlainGroup
from ._table import print_table

if TYPE_CHECKING:
    from host_client.store.base import Token, TokenStore

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Create, list and revoke the tokens of the service.")

RoleName = Literal["viewer", "approver", "operator"]  # the same as the store's, which is not imported for --help
MAX_NAME = 100
MAX_DAYS = 3650
COLUMNS = ("id", "name", "tenant", "role", "created", "expires")

StoreUrl = Annotated[str | None, typer.Option("--store", help="The service's store: a path or redis://…")]


@app.command(cls=PlainCommand)
def create(
    tenant: Annotated[str, typer.Option(help="Tenant whose sessions the token is for.")],
    name: Annotated[str, typer.Option(help="Name of the token's holder, shown with every decision.")],
    role: Annotated[RoleName, typer.Option(help="viewer reads, approver also decides, operator does all.")] = "viewer",
    expires_days: Annotated[int | None, typer.Option(help="Days until it expires. Default: never.")] = None,
    store: StoreUrl = None,
) -> None:
    """Create a token and print it. It is never shown again, as only its digest is stored."""
    with _reported_errors():
        for option, value in (("--tenant", tenant), ("--name", name)):
            _check_name(option, value)
        if expires_days is not None and not 1 <= expires_days <= MAX_DAYS:
            raise ConfigurationError(f"--expires-days takes 1 to {MAX_DAYS}")
        from host_client.store.tokens import new_token

        expires_at = time.time() + expires_days * 86_400 if expires_days is not None else None
        plaintext, token = new_token(name, tenant, role, expires_at)
        run_until_signal(_add(store, token))
    typer.echo(plaintext)
    until = f"until {_day(expires_at)} (UTC)" if expires_at is not None else "until it is revoked"
    typer.echo(f"{token.id}: {role} for {tenant}, {until}; keep it now, it is not shown again", err=True)


@app.command(name="list", cls=PlainCommand)
def list_tokens(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    store: StoreUrl = None,
) -> None:
    """List the names and roles of all tokens, also expired ones; the tokens themselves are not stored."""
    with _reported_errors():
        found = run_until_signal(_all(store))
    if as_json:
        for each in found:
            typer.echo(json.dumps(_fields(each), ensure_ascii=False))
    elif not found:
        typer.echo("no tokens", err=True)
    else:
        print_table(COLUMNS, (_row(each) for each in found))


@app.command(cls=PlainCommand)
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token (tok_…), as `tokens list` shows it.")],
    store: StoreUrl = None,
) -> None:
    """Revoke a token; a running service may still accept it for 5 seconds."""
    with _reported_errors():
        if token_id.startswith("sst_"):
            raise ConfigurationError("give the token's id (tok_…), not the token itself: see host_client tokens list")
        was_there = run_until_signal(_remove(store, token_id))
    if not was_there:
        typer.echo(f"host_client tokens: there is no token {token_id[:100]!r}: see host_client tokens list", err=True)
        raise typer.Exit(1)
    typer.echo(f"{token_id} revoked")


@contextmanager
def _reported_errors() -> Generator[None]:
    """Print an error of the block and exit: with code 2 for a bad option or value, with 3 if the store fails."""
    from host_client.store.base import StoreError

    with reported_errors("host_client tokens"):
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


def _store_exists(url: str | None) -> bool:
    """Return whether the store exists; raise `StoreError` if a named one does not. Listing must not create one."""
    from host_client.store import is_to_be_made
    from host_client.store.base import StoreError

    missing = is_to_be_made(url)
    if missing is not None and url:
        raise StoreError(f"there is no store at {missing}: --store takes the service's store")
    return missing is None


async def _all(url: str | None) -> list[Token]:
    if not _store_exists(url):
        return []
    async with _opened(url) as store:
        return await store.tokens()


async def _remove(url: str | None, token_id: str) -> bool:
    if not _store_exists(url):
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
    until = "never"
    if token.expires_at is not None:
        until = _day(token.expires_at) if token.expires_at > time.time() else "expired"
    return token.id, token.name, token.tenant_id, token.role, _day(token.created_at), until


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _day(seconds: float) -> str:
    return f"{_moment(seconds):%Y-%m-%d %H:%M:%S}"
