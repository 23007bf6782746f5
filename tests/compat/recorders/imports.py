"""Records what each function and class that programs use takes."""

from __future__ import annotations

from tests.compat.files import PUBLIC, write_text
from tests.compat.public import taken


def record() -> None:
    """Write it."""
    write_text(PUBLIC, taken())
