"""Fixtures for all tests, and the marking of integration tests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.integration import is_integration, starts_nothing
from tests.support.runs import Lab, lab

# On a busy machine the duration of an example is no sign of an error.
settings.register_profile("sandspan", deadline=None)
settings.load_profile("sandspan")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each integration test, so that `make check` can leave it out."""
    if isinstance(item, pytest.Function) and is_integration(item):
        item.add_marker(pytest.mark.integration)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with nullcontext() if item.get_closest_marker("integration") else starts_nothing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with nullcontext() if item.get_closest_marker("integration") else starts_nothing():
        return (yield)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """Return a function that sets up a lab for a model script (YAML)."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(lab(tmp_path, script))
