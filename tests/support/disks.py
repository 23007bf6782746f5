"""Mount small file systems, for tests with a full disk."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_REMOUNT = 32


@contextmanager
def small_disk(place: Path, size: str) -> Generator[Path]:
    """Mount a file system of a size such as ``16k`` on a new directory; skip the test where mounting is not allowed."""
    place.mkdir()
    if _mount(place, size, 0):
        why = f"cannot mount a small file system: {os.strerror(ctypes.get_errno())}"
        assert not os.environ.get("CI"), why  # there a part that is missing is a failure
        pytest.skip(why)
    yield place
    assert _libc.umount2(str(place).encode(), 2) == 0


def resize(place: Path, size: str) -> None:
    """Give a file system that `small_disk` mounted another size."""
    assert _mount(place, size, _REMOUNT) == 0


def _mount(place: Path, size: str, flags: int) -> int:
    return _libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode())
