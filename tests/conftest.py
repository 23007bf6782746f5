"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.runs import Lab, lab

# How long an example takes says nothing on a busy machine.
settings.register_profile("sandspan", deadline=None)
settings.load_profile("sandspan")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """Set up a lab for a script (YAML)."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(lab(tmp_path, script))
