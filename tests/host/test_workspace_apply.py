"""Changes are applied to a folder of the host as a whole, and nothing of the user's is lost where that fails."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from host_client import Changes
from host_client.errors import ConfigurationError
from host_client.workspace import _program as program
from host_client.workspace._baseline import read_baseline
from host_client.workspace._patching import changes_since
from tests.host.test_workspace import content
from tests.host.test_workspace_hostile import answer

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FILE, PROGRAM = program.FILE, program.PROGRAM
NOBODY = 65534


def changes_of(
    folder: Path,
    changed: dict[str, str],
    deleted: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
    mode: int = FILE,
) -> Changes:
    """Return the changes of a folder by an agent that gave these files these contents."""
    base = read_baseline(folder, 1000, 1_000_000, pack=False)
    listed = [(path, mode, len(text)) for path, text in changed.items()]
    sent = answer("".join(changed.values()).encode(), changed=listed, deleted=deleted, folders=folders)
    with contextlib.closing(base):
        return changes_since(base, sent, 1000, 1_000_000, in_place=False)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def shut_for_others() -> Generator[Path]:
    """A folder of an account that is not root, in which it may not write to ``shut``; the test runs as the account."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # the account can reach it
        folder = Path(name)
        (folder / "shut").mkdir()
        for path in ("a", "z", "gone", "shut/file"):
            (folder / path).write_text(path)
        (folder / "shut").chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            for each in (folder, *folder.rglob("*")):
                os.chown(each, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            (folder / "shut").chmod(0o755)


async def test_a_folder_that_is_not_writable_is_named_before_anything_is_changed(shut_for_others: Path) -> None:
    folder, before = shut_for_others, content(shut_for_others)
    for changes in (
        changes_of(folder, {"a": "new", "shut/file": "new", "z": "new"}, deleted=("gone",)),
        changes_of(folder, {"a": "new"}, deleted=("gone",), folders=("shut/empty",)),
    ):
        with pytest.raises(ConfigurationError, match=r"you may not write in its folders 'shut'. Make them writable"):
            await changes.apply()
        assert content(folder) == before


@contextlib.contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    """Let no process write a larger file, so that git fails between two files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "folder").mkdir(parents=True)
    for name in ("text", "other", "gone", "file", "folder/in"):
        (folder / name).write_text(name)
    (folder / "text").chmod(0o640)
    return folder


async def test_a_folder_whose_name_is_too_long_leaves_every_file_in_its_place(home: Path, saved: Path) -> None:
    before = content(home)
    changes = changes_of(home, {"text": "new", "new/file": "f"}, deleted=("gone",), folders=("new/empty", "x" * 300))
    with pytest.raises(ConfigurationError, match=r"(?s)which is as it was: .*File name too long. Remove the cause"):
        await changes.apply()
    assert content(home) == before
    assert os.listdir(saved) == []


async def test_files_and_folders_that_took_the_place_of_each_other_are_put_back(home: Path, saved: Path) -> None:
    before = content(home)
    new = {"text": "new", "new/in/file": "f", "file/in/it": "f", "folder": "f", "zzz": "z" * 10_000}
    changes = changes_of(home, new, deleted=("gone", "file", "folder/in"), folders=("new/empty",))
    with files_of_at_most(5000), pytest.raises(ConfigurationError, match="which is as it was: git ended with code"):
        await changes.apply()
    assert content(home) == before
    assert (home / "text").stat().st_mode & 0o777 == 0o640
    assert os.listdir(saved) == []
    await changes.apply()
    assert (home / "file/in/it").read_text() == "f"
    assert (home / "new/empty").is_dir()


async def test_what_cannot_be_put_back_is_kept_and_named(
    home: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = changes_of(home, {"text": "new", "other": "new", "zzz": "z" * 10_000})
    replace = os.replace

    def fail(source: bytes, target: bytes) -> None:
        if target.endswith(b"text"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with (
        files_of_at_most(5000),
        pytest.raises(ConfigurationError, match=r"'text' there could not be put back") as raised,
    ):
        await changes.apply()
    (kept,) = re.findall(r"are in (\S+), copy them from there", str(raised.value))
    assert Path(kept).parent == saved
    assert (Path(kept) / "text").read_text() == "text"
    assert (home / "other").read_text() == "other"


@pytest.mark.parametrize(
    ("before", "mode", "after"),
    [(0o600, FILE, 0o600), (0o775, PROGRAM, 0o775), (0o640, PROGRAM, 0o750), (0o770, FILE, 0o660)],
)
async def test_a_changed_file_keeps_its_permissions(tmp_path: Path, before: int, mode: int, after: int) -> None:
    (tmp_path / "text").write_text("one")
    (tmp_path / "text").chmod(before)
    await changes_of(tmp_path, {"text": "two"}, mode=mode).apply()
    assert (tmp_path / "text").read_text() == "two"
    assert (tmp_path / "text").stat().st_mode & 0o777 == after
