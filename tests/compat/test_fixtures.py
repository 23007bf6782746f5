"""The recorded files contain no paths of a machine and are small."""

from __future__ import annotations

import gzip
import lzma
import re
from pathlib import Path

import pytest

from tests.compat.files import FIXTURES

MACHINE = re.compile(rb"(?<!/var)/(tmp|root|private|Users|nix|mnt|work)/|/home/(?!user\b)|-tmp-")
"""Folders that exist on one machine only; recordings of a sandbox have `/home/user` and `/var/lib/sandspan`."""

FILES = sorted(path for path in FIXTURES.rglob("*") if path.is_file())
PACKED = {".gz": gzip.decompress, ".xz": lzma.decompress}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FIXTURES).as_posix())
def test_a_recorded_file_holds_no_path_of_the_machine_that_recorded_it(path: Path) -> None:
    content = PACKED.get(path.suffix, bytes)(path.read_bytes())
    content = re.sub(rb"(?<=/home/user/)work/", b"", content)
    assert MACHINE.findall(content) == []


def test_all_recorded_files_together_are_small() -> None:
    assert FILES
    assert sum(path.stat().st_size for path in FILES) < 1536 * 1024
