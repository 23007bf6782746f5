"""A temporary directory is removed at whatever point a signal handler raises an exception."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import FrameType

import pytest

from agent_runner.contract.directories import temporary_directory


class Interruption(BaseException):
    """An exception that a signal handler raises."""


class Interrupter:
    """Profile function that raises an `Interruption` at the n-th point where CPython may call a signal handler."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_return"):  # it may at the start of a Python function, and after a call of another
            self.left -= 1
            if self.left == 0:
                raise Interruption


def use_directory() -> None:
    with temporary_directory("interrupted-") as path:
        (path / "file").write_text("text")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupted `rmtree` closes late
def test_it_is_removed_wherever_the_block_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    n, is_interrupted = 0, True
    while is_interrupted:
        n += 1
        interrupter = Interrupter(n)
        sys.setprofile(interrupter)
        try:
            use_directory()
        except (Interruption, OSError):  # OSError: an interrupted `shutil.rmtree` may close its descriptor twice
            pass
        finally:
            sys.setprofile(None)
        assert list(tmp_path.iterdir()) == [], f"interruption {n} left it"
        is_interrupted = interrupter.left <= 0
    assert n > 50
