"""Services, and the shell around them with a store and tokens."""

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
    """Set up a place for services against a script (YAML) of the model's."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
    host = stack.enter_context(host_lab(script))
    return stack.enter_context(service_lab(root, host.environ)), host


def new_e2b_service(stack: ExitStack, script: str) -> tuple[ServiceLab, E2BLab]:
    """Set up a place for services whose sandboxes are in a stand-in of E2B."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
    e2b = stack.enter_context(e2b_lab(script))
    return stack.enter_context(service_lab(root, e2b.environ)), e2b


@pytest.fixture
def make_service() -> Iterator[Callable[[str], tuple[ServiceLab, HostLab]]]:
    """`new_service`, whose services end with the test."""
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
    """A token of each role, of the tenant acme; its name is its role."""
    made: dict[Role, str] = {}
    roles: tuple[Role, ...] = ("viewer", "approver", "operator")
    for role in roles:
        made[role], token = new_token(role, "acme", role)
        await store.add_token(token)
    return made


@pytest.fixture
def open_shell() -> FastAPI:
    """A service that takes no tokens, as on loopback."""
    return shell(Authenticator(NoTokens(), False))


@pytest.fixture
def make_shell(store: SqliteStore) -> Callable[..., FastAPI]:
    """Make a service that takes tokens."""

    def make(**options: Sequence[str]) -> FastAPI:
        return shell(Authenticator(store, True), **options)

    return make
