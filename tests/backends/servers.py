"""Real backends; `make test-backends` installs each into an environment of its own."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import running

WAIT_SECONDS = 100.0
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".backends"


@contextmanager
def server(name: str, *arguments: str, url: str, folder: Path, environ: Mapping[str, str]) -> Generator[None]:
    """Run the program of a backend until the block ends; wait until its URL answers."""
    program = ENVIRONMENTS / name / "bin" / name
    assert program.exists(), f"{name} is not installed: run make test-backends"
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(folder), **environ}
    with running([str(program), *arguments], url=url, log=folder / "log", seconds=WAIT_SECONDS, environ=env):
        yield
