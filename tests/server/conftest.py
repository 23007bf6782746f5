"""Fixtures with services, and with the service's HTTP shell, its store and its tokens."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI

from host_client.service._auth import Authenticator
from host_client.store._sqlite import SqliteStore
from host_client.store.base import Role
from host_client.store.tokens import new_token
from tests.server.shell import NoTokens, shell
from tests.support.hosts import E2BLab, HostLab, e2b_lab, host_lab
from tests.support.service import ServiceLab, service_lab


def new_service(stack: ExitStack, script: str) -> tuple[ServiceLab, HostLab]:
    """Set up a lab for services with a scripted model (YAML)."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
    host = stack.enter_context(host_lab(script))
    return stack.enter_context(service_lab(root, host.environ)), host


def new_e2b_service(stack: ExitStack, script: str) -> tuple[ServiceLab, E2BLab]:
    """Set up a lab for services whose sandboxes are in a stand-in of E2B."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
    e2b = stack.enter_context(e2b_lab(script))
    return stack.enter_context(service_lab(root, e2b.environ)), e2b


@pytest.fixture
def make_service() -> Iterator[Callable[[str], tuple[ServiceLab, HostLab]]]:
    """Return `new_service` for use in a test, at whose end the services stop."""
    with ExitStack() as stack:
        yield lambda script: new_service(stack, script)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "service.sqlite")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def tokens(store: SqliteStore) -> dict[Role, str]:
    """Return a token for each role, with the tenant ``acme`` and the role's name."""
    made: dict[Role, str] = {}
    roles: tuple[Role, ...] = ("viewer", "approver", "operator")
    for role in roles:
        made[role], token = new_token(role, "acme", role)
        await store.add_token(token)
    return made


@pytest.fixture
def open_shell() -> FastAPI:
    """Return an HTTP shell that requires no tokens, as a service on loopback."""
    return shell(Authenticator(NoTokens(), False))


@pytest.fixture
def make_shell(store: SqliteStore) -> Callable[..., FastAPI]:
    """Return a function that makes an HTTP shell which requires tokens."""

    def make(**options: Sequence[str]) -> FastAPI:
        return shell(Authenticator(store, True), **options)

    return make
