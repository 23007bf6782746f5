"""A session reads one file from the agent's working directory, local and in E2B, and nothing outside of it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from host_client import LocalSandbox, Session, open_session
from host_client.errors import FileMissingError, FileRefusedError, FileTooLargeError, SessionClosedError
from tests.host.test_e2b_sessions import REPLY
from tests.support.hosts import e2b_lab, host_lab

pytestmark = pytest.mark.anyio

Kind = Literal["local", "e2b"]
BOTH = pytest.mark.parametrize("kind", ["local", "e2b"])
CONTENT = b"\x00\xff\r\n'quoted' $HOME\n"
NAME = "a b'$(c).bin"


@asynccontextmanager
async def opened(kind: Kind) -> AsyncGenerator[tuple[Session, Path]]:
    """Open a session in a local or an E2B sandbox; return it and the path of its working directory on this machine."""
    if kind == "local":
        with host_lab(REPLY) as lab:
            async with open_session(sandbox=LocalSandbox(), environ=lab.environ) as session:
                assert session.info is not None
                yield session, Path(session.info.work)
    else:
        with e2b_lab(REPLY) as lab:
            async with open_session(sandbox=lab.sandbox(), environ=lab.environ) as session:
                yield session, lab.work


@BOTH
async def test_a_file_comes_out_as_it_is(kind: Kind) -> None:
    async with opened(kind) as (session, work):
        inner = work / "inner"
        inner.mkdir()
        (inner / NAME).write_bytes(CONTENT)
        (work / "empty").touch()
        (work / "link").symlink_to(f"inner/{NAME}")
        (work / "-n").write_bytes(b"no option")
        assert await session.read_file(f"inner/{NAME}", len(CONTENT)) == CONTENT
        assert await session.read_file("./link", 1000) == CONTENT
        assert await session.read_file("empty", 0) == b""
        assert await session.read_file("-n", 1000) == b"no option"
        with pytest.raises(FileTooLargeError, match=f"larger than {len(CONTENT) - 1} bytes"):
            await session.read_file(f"inner/{NAME}", len(CONTENT) - 1)
    with pytest.raises(SessionClosedError):
        await session.read_file("empty", 1)


@BOTH
async def test_what_is_no_file_of_the_agents_work_is_refused(kind: Kind) -> None:
    async with opened(kind) as (session, work):
        (work / "folder").mkdir()
        (work / "file").touch()
        (work / "out").symlink_to("/etc/passwd")
        (work / "up").symlink_to("..")
        (work / "itself").symlink_to("itself")
        (work / "nowhere").symlink_to("missing")
        os.mkfifo(work / "pipe")
        beside = work.parent / f"{work.name}-beside"
        beside.write_text("not the agent's")
        for path in ("", ".", "/etc/passwd", "../x", "folder/../file", f"{work}/file", "a\0b"):
            with pytest.raises(FileRefusedError, match="is not within the working directory"):
                await session.read_file(path, 1000)
        for path in ("out", "up", f"up/{beside.name}"):
            with pytest.raises(FileRefusedError, match="leads out of the working directory"):
                await session.read_file(path, 1000)
        for path in ("folder", "pipe"):
            with pytest.raises(FileRefusedError, match="not a regular file"):
                await session.read_file(path, 1000)
        for path in ("missing", "nowhere", "file/below"):
            with pytest.raises(FileMissingError, match="has no file"):
                await session.read_file(path, 1000)
        with pytest.raises(FileRefusedError):
            await session.read_file("itself", 1000)
        beside.unlink()


async def test_a_link_does_not_give_out_what_only_root_may_read() -> None:
    async with opened("e2b") as (session, work):
        hidden = work / "hidden"
        hidden.write_text("root's")
        hidden.chmod(0o600)
        os.chown(hidden, 0, 0)
        (work / "link").symlink_to("hidden")
        with pytest.raises(FileRefusedError, match=r"cannot be read: .*Permission denied"):
            await session.read_file("link", 1000)
        assert [path.name for path in (work.parent / "state").iterdir() if path.suffix == ".file"] == []
