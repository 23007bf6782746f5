"""Every test has an E2B of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.e2b import StandIn


@pytest.fixture
def e2b() -> Iterator[StandIn]:
    """E2B, with no template yet."""
    with StandIn(templates=()) as stand_in:
        yield stand_in
