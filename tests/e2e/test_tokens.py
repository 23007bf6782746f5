"""``host_client tokens`` as an operator uses it while a running service has the database open."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from host_client.store._sqlite import SqliteStore
from host_client.store.tokens import digest_of
from tests.e2e.test_commands import piped
from tests.support.commands import invoked

CREATE = ("tokens", "create", "--tenant", "acme", "--name")


def listed(home: Path, *options: str) -> list[dict[str, Any]]:
    done = piped(home, "tokens", "list", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.anyio
async def test_a_token_is_made_listed_and_revoked_while_the_service_runs(tmp_path: Path) -> None:
    service = SqliteStore(tmp_path / ".local" / "state" / "sandspan" / "service.sqlite")
    await service.open()
    done = await asyncio.to_thread(piped, tmp_path, *CREATE, "ada", "--role", "approver", "--expires-days", "2")
    assert done.returncode == 0, done.stderr
    plaintext = done.stdout.decode().removesuffix("\n")
    assert plaintext.startswith("sst_")
    assert "\n" not in plaintext  # stdout has only the token, as for $(host_client tokens create …)
    assert b"not shown again" in done.stderr
    assert plaintext.encode() not in done.stderr
    token = await service.find_token(digest_of(plaintext))
    assert token is not None
    assert (token.name, token.tenant_id, token.role) == ("ada", "acme", "approver")
    assert token.expires_at is not None
    assert round((token.expires_at - token.created_at) / 86_400) == 2

    (shown,) = await asyncio.to_thread(listed, tmp_path)
    assert (shown["id"], shown["name"], shown["tenant_id"], shown["role"]) == (token.id, "ada", "acme", "approver")
    assert plaintext not in str(shown)
    assert token.digest not in str(shown)

    done = await asyncio.to_thread(piped, tmp_path, "tokens", "revoke", token.id)
    assert (done.returncode, done.stdout) == (0, f"{token.id} revoked\n".encode())
    assert await service.find_token(token.digest) is None
    await service.close()


def test_a_list_is_columns_with_tabs_between_them(tmp_path: Path) -> None:
    assert piped(tmp_path, "tokens", "list").stderr == b"no tokens\n"
    assert not list(tmp_path.rglob("*.sqlite*")), "looking makes no store"
    for name in ("ada", "bob ☃"):
        assert piped(tmp_path, *CREATE, name, "--store", str(tmp_path / "s.sqlite")).returncode == 0
    done = piped(tmp_path, "tokens", "list", "--store", f"sqlite://{tmp_path}/s.sqlite")
    head, *rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert head == ["id", "name", "tenant", "role", "created", "expires"]
    assert [(row[1], row[3], row[5]) for row in rows] == [("ada", "viewer", "never"), ("bob ☃", "viewer", "never")]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((*CREATE, "a\nb"), 2, "--name takes 1 to 100 printable characters"),
        ((*CREATE, ""), 2, "--name takes"),
        ((*CREATE, "x" * 101), 2, "--name takes"),
        (("tokens", "create", "--name", "a", "--tenant", " "), 2, "--tenant takes"),
        ((*CREATE, "a", "--expires-days", "0"), 2, "--expires-days takes 1 to 3650"),
        ((*CREATE, "a", "--role", "root"), 2, "operator"),
        ((*CREATE, "a", "--store", "mysql://u:secret@h/d"), 2, "--store takes a path"),
        ((*CREATE, "a", "--store", "/proc/nowhere/s.sqlite"), 3, "/proc/nowhere"),
        (("tokens", "list", "--store", "typo/s.sqlite"), 3, "there is no store at typo/s.sqlite"),
        (("tokens", "revoke", "tok_1", "--store", "typo/s.sqlite"), 3, "there is no store at typo/s.sqlite"),
        (("tokens", "list", "--store", "x" * 300), 3, "too long"),
        (("tokens", "revoke", "tok_1"), 1, "there is no token 'tok_1'"),
        (("tokens", "revoke", "sst_secret"), 2, "host_client tokens: give the token's id (tok_…)"),
    ],
)
def test_a_mistake_is_told_in_a_line(tmp_path: Path, args: tuple[str, ...], code: int, says: str) -> None:
    done = invoked(tmp_path, *args)
    assert done.returncode == code
    assert done.stdout == b""
    assert says in done.stderr.decode()
    assert "secret" not in done.stderr.decode()
    assert not (tmp_path / "typo").exists()
