"""Temporary directories that a command ended by a signal does not leave behind."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_directory(prefix: str) -> Generator[Path]:
    """Create a directory and yield its path; remove it after the block.

    It is removed also if a signal handler raises an exception at any point. `tempfile.TemporaryDirectory` keeps the
    directory if that happens after the directory is created and before its removal is registered.
    """
    path = Path(tempfile.gettempdir(), prefix + secrets.token_hex(8))
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            shutil.rmtree(path, ignore_errors=True)  # the handler may have interrupted the first removal
