"""Files are copied into and out of a sandbox; copied archives are treated as hostile."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from host_client import open_session
from host_client.errors import ConfigurationError, SandboxError
from host_client.sandbox.e2b import _files as files
from tests.support.hosts import ACCOUNT, e2b_lab

REPLY_AFTER = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{{name: Bash, input: {{command: {command!r}}}}}]
          - text: Done.
"""


async def session_that(command: str, upload: Path | None, download: Path) -> None:
    """Run a command as the agent in a sandbox with uploaded files, and download the working directory."""
    with e2b_lab(REPLY_AFTER.format(command=command)) as lab:
        async with open_session(
            "go", sandbox=lab.sandbox(), approvals="auto", environ=lab.environ, upload=upload
        ) as session:
            await session.finish()
            _ = [event async for event in session]
            await session.download(download)


@pytest.mark.anyio
async def test_a_folder_goes_in_and_what_the_agent_made_of_it_comes_out(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"\x00\xff" * 300_000)
    (source / "link").symlink_to("deep")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    await session_that("cp deep/er/file copied && stat -c %U copied > owner", source, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "copied").read_bytes() == b"\x00\xff" * 300_000
    assert (out / "owner").read_text().strip() == ACCOUNT
    assert (out / "link").readlink() == Path("deep")
    assert os.access(out / "run.sh", os.X_OK)


@pytest.mark.anyio
async def test_a_single_file_goes_in(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    await session_that("cp one two", tmp_path / "one", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]


@pytest.mark.anyio
async def test_links_that_lead_out_and_pipes_stay_behind_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "host_client.sandbox.e2b._files"):
        await session_that("ln -s /etc out; ln -s ../.. up; mkfifo pipe; echo yes > fine", None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fine"]
    assert "3 entries from the sandbox were refused" in caplog.text


@pytest.mark.anyio
async def test_what_the_agent_plants_in_its_login_files_does_not_run_when_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with e2b_lab(REPLY_AFTER.format(command="true")) as lab:
        sandbox = lab.sandbox()
        await sandbox.create({"sandspan.run_id": "run-1"})
        home = lab.e2b.sandboxes[0].accounts.find("user").home
        for name in (".profile", ".bash_profile", ".bashrc"):
            (home / name).write_text(f"touch {lab.work}/planted\n")
        await sandbox.upload(tmp_path / "in")
        await sandbox.download(tmp_path / "out")
        await sandbox.close()
        assert list(lab.work.iterdir()) == []
        assert list(lab.state.iterdir()) == [], "the archives are gone"


@pytest.mark.anyio
async def test_a_file_that_cannot_be_read_costs_that_file_only(tmp_path: Path) -> None:
    await session_that("echo 1 > fine; echo 2 > closed; mkdir shut; chmod 0 closed shut", None, tmp_path / "out")
    assert (tmp_path / "out" / "fine").exists()


@pytest.mark.anyio
async def test_too_much_to_upload_is_told_before_a_byte_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "big").write_bytes(b"x" * 200_000)
    with pytest.raises(ConfigurationError, match="upload less"):
        await session_that("true", tmp_path, tmp_path / "out")


@pytest.mark.anyio
async def test_more_than_the_cap_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    with pytest.raises(SandboxError, match="larger than 100000 bytes"):
        await session_that("head -c 200000 /dev/zero > big", None, tmp_path / "out")


def archive(*members: tuple[str, Callable[[tarfile.TarInfo], object]]) -> io.BytesIO:
    """Return a tar archive with the given members, as a hostile sandbox may make it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, shape in members:
            member = tarfile.TarInfo(name)
            shape(member)
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    made.seek(0)
    return made


def plain(member: tarfile.TarInfo) -> None:
    member.size = 1


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def shape(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return shape


def device(member: tarfile.TarInfo) -> None:
    member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3


@pytest.mark.parametrize(
    "members",
    [
        (("../escaped", plain),),
        (("a/../../escaped", plain),),
        (("escaped", link(tarfile.SYMTYPE, "../..")),),
        (("escaped", link(tarfile.SYMTYPE, "/etc/passwd")),),
        (("escaped", link(tarfile.LNKTYPE, "../outside")),),
        (("escaped", device),),
        (("inner", link(tarfile.SYMTYPE, ".")), ("inner/../../escaped", plain)),
    ],
)
def test_nothing_is_written_outside_the_target(
    tmp_path: Path, members: tuple[tuple[str, Callable[[tarfile.TarInfo], object]], ...]
) -> None:
    (tmp_path / "outside").write_text("mine")
    refused = files.unpack(archive(("before", plain), *members, ("after", plain)), tmp_path / "target")
    assert len(refused) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "target"]
    assert not (tmp_path / "target" / "escaped").exists()
    assert (tmp_path / "target" / "after").exists()


def test_a_link_that_lies_in_the_target_already_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "inner").symlink_to(tmp_path / "elsewhere")
    assert len(files.unpack(archive(("inner/escaped", plain)), tmp_path / "target")) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_absolute_name_lands_in_the_target(tmp_path: Path) -> None:
    assert files.unpack(archive(("/etc/harmless", plain)), tmp_path / "target") == []
    assert (tmp_path / "target" / "etc" / "harmless").exists()


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="sent no valid archive"):
        files.unpack(io.BytesIO(b"x" * 4096), tmp_path / "target")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GNU.sparse.map", "a,b"),
        ("GNU.sparse.size", "x"),
        ("GNU.sparse.realsize", "x"),
        ("mtime", "nan"),
        ("mtime", "inf"),
        ("mtime", "1e400"),
        ("path", "nul\0inside"),
    ],
)
def test_headers_that_are_nonsense_are_told_and_no_crash(tmp_path: Path, name: str, value: str) -> None:
    def odd(member: tarfile.TarInfo) -> None:
        member.size, member.pax_headers = 1, {name: value}

    with contextlib.suppress(SandboxError):
        files.unpack(archive(("odd", odd)), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] in (["target"], [])


def test_endless_small_files_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 10)
    with pytest.raises(SandboxError, match="more than 10"):
        files.unpack(archive(*((f"f{n}", plain) for n in range(11))), tmp_path / "target")
