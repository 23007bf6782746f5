"""Fixtures with a stand-in of E2B for each test, and with the built wheel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packaging.environments import Wheel, build_wheel
from tests.support.e2b import StandIn


@pytest.fixture
def e2b() -> Iterator[StandIn]:
    """Run a stand-in of E2B without any template."""
    with StandIn(templates=()) as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return build_wheel(tmp_path_factory.mktemp("wheel"))
