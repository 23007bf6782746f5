"""An agent that tampers with the folder it was given, or forges what comes back, harms neither host nor user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from host_client import open_session
from host_client.errors import ConfigurationError, SandboxError
from host_client.workspace import _program as program
from host_client.workspace._collected import read_collected
from tests.host.test_workspace import SCRIPT, content, states
from tests.support.hosts import E2BLab, e2b_lab

BASE = {b"a": "digest of a", b"dir/b": "digest of b"}
FILE, LINK = program.FILE, program.LINK


def answer(contents: bytes = b"", **head: Any) -> bytes:
    """Return the changes as a sandbox sends them."""
    whole: dict[str, Any] = {"deleted": [], "changed": [], "folders": [], "left_out": [], "left_out_count": 0, **head}
    return json.dumps(whole).encode() + b"\n" + contents


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"no json\n",
        b"[" * 100_000,
        answer(changed=[("x", FILE, 5)]),
        answer(changed=[("x", FILE, -1)]),
        answer(changed=[("x", 0o160000, 0)]),
        answer(changed=[("x", 0o104755, 0)]),
        answer(changed=[("x", FILE, 0), ("x", FILE, 0)]),
        answer(changed=[("a", FILE, 0)], deleted=["a"]),
        answer(changed=[(f"f{number}", FILE, 0) for number in range(101)]),
        answer(b"x" * 1001, changed=[("x", FILE, 1001)]),
        answer(deleted=["never there"]),
        answer(changed=[("\u0100", FILE, 0)]),
        answer(changed=[("a/below a file", FILE, 0)]),
        answer(changed=[("dir", FILE, 0)]),
        answer(b"in", changed=[("link", LINK, 2), ("link/x", FILE, 0)]),
        answer(folders=["a/in"]),
        *(
            answer(changed=[(path, FILE, 0)])
            for path in ("", "/etc/cron.d/x", "../x", "dir/../../x", "./x", "dir//x", "x\0y", "dir/..")
        ),
        *(answer(changed=[(path, FILE, 0)]) for path in (".git/hooks/post-checkout", "sub/.GIT/config", "git~1/x")),
        *(answer(folders=[path]) for path in ("/tmp/x", "../x", ".git/x")),
        *(
            answer(target, changed=[("dir/link", LINK, len(target))])
            for target in (b"/etc/passwd", b"../../x", b"x/../../../y", b"a/a/..", b".././a/..", b"a\0b")
        ),
    ],
)
def test_forged_changes_are_refused_as_a_whole(forged: bytes) -> None:
    with pytest.raises(SandboxError, match="the sandbox sent changes that are not valid, so none is used"):
        read_collected(forged, BASE, 100, 1000)


def test_changes_that_are_right_are_read() -> None:
    right = answer(
        b"new../a",
        changed=[("dir", FILE, 3), ("deep/link", LINK, 4)],
        deleted=["dir/b"],
        folders=["e/f"],
        left_out=[("caf\xe9", "is no regular file")],
        left_out_count=3,
    )
    assert read_collected(right, BASE, 100, 1000) == (
        (b"dir/b",),
        ((b"dir", FILE, b"new"), (b"deep/link", LINK, b"../a")),
        (b"e/f",),
        ("caf\udce9 is no regular file", "and 2 more"),
    )


TAMPER = r"""
evil="touch {marker}"
for name in core.fsmonitor core.sshCommand core.pager diff.external diff.evil.textconv diff.evil.command; do
  printf '[%s]\n %s = "%s #"\n' "$(echo $name | cut -d. -f1)" "$(echo $name | cut -d. -f2-)" "$evil" >> extra
done
cat >> .git/config <<X
[core]
 fsmonitor = "$evil #"
 hooksPath = hooks
[filter "evil"]
 clean = "$evil; cat"
 smudge = "$evil; cat"
 process = "$evil"
 required = true
[diff "evil"]
 textconv = "$evil #"
X
mkdir hooks; for hook in post-index-change pre-commit post-checkout pre-applypatch; do
  printf '#!/bin/sh\n%s\n' "$evil" > hooks/$hook; chmod +x hooks/$hook
done
echo '* filter=evil diff=evil text eol=crlf ident working-tree-encoding=UTF-16' > .gitattributes
mkdir nested; cp -r .git nested/.git; echo '$Id$' > nested/file
rm -rf .git/objects extra; printf 'one\r\ntwo\n$Id$\n' > text
mkdir -p ~/.config/git; cp nested/.git/config ~/.gitconfig
"""


@pytest.mark.anyio
@pytest.mark.integration
async def test_what_the_agent_does_to_git_runs_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "text").write_text("one\n")
    (folder / ".gitattributes").write_text("* text eol=crlf ident\n")
    command = TAMPER.replace("{marker}", "MARKER")
    with e2b_lab(SCRIPT.format(command=json.dumps(command))) as lab:
        marker = lab.root / "tmp" / "marker"
        _point_at(lab, command, marker)
        async with open_session(
            "go", sandbox=lab.sandbox(), environ=lab.environ, cwd=folder, approvals="auto"
        ) as session:
            await session.finish()
            _ = [event async for event in session]
        changes = await session.changes()
        assert not marker.exists()
    await changes.apply()
    assert not marker.exists()
    found = content(folder)
    assert found[b"text"] == (b"one\r\ntwo\n$Id$\n", 0)
    assert found[b"nested/file"] == (b"$Id$\n", 0)
    assert not (folder / ".git").exists()
    assert not (folder / "nested" / ".git").exists()
    assert states(changes).keys() >= {"text", "nested/file", ".gitattributes", "hooks/pre-commit"}


def _point_at(lab: E2BLab, command: str, marker: Path) -> None:
    """Put the marker's path into the script, as the lab's folder is known only now."""
    (main,) = lab.model.script.conversations.values()
    (reply, *_) = main.replies
    (tool,) = reply.tools
    tool.input["command"] = command.replace("MARKER", str(marker))


@pytest.mark.anyio
@pytest.mark.integration
@pytest.mark.parametrize("target", ["/etc", "state"])
async def test_a_working_directory_that_was_replaced_by_a_link_shows_nothing_that_the_agent_cannot_read(
    target: str, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    with e2b_lab(SCRIPT.format(command="'true'")) as lab:
        async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=folder) as session:
            lab.work.rename(lab.root / "moved")
            lab.work.symlink_to(lab.state if target == "state" else target)
            if target == "state":
                with pytest.raises(SandboxError):
                    await session.changes()
            else:
                changes = await session.changes()
                assert "shadow" not in states(changes)


@pytest.mark.anyio
@pytest.mark.integration
async def test_a_link_of_the_users_own_is_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    """The folder has a link to another folder; the agent puts a folder of the same name in its place."""
    folder, outside = tmp_path / "project", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
    (folder / "data").symlink_to(outside)
    command = "rm data; mkdir data; echo new > data/file"
    with e2b_lab(SCRIPT.format(command=json.dumps(command))) as lab:
        async with open_session(
            "go", sandbox=lab.sandbox(), environ=lab.environ, cwd=folder, approvals="auto"
        ) as session:
            await session.finish()
            _ = [event async for event in session]
    changes = await session.changes()
    await changes.apply()
    assert list(outside.iterdir()) == []
    assert (folder / "data" / "file").read_text() == "new\n"
    assert not (folder / "data").is_symlink()


@pytest.mark.anyio
@pytest.mark.integration
async def test_a_patch_is_applied_to_a_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    with e2b_lab(SCRIPT.format(command="touch made")) as lab:
        async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=folder) as session:
            (lab.work / "made").touch()
            changes = await session.changes()
    with pytest.raises(ConfigurationError, match="is not a directory"):
        await changes.apply(tmp_path / "missing")
