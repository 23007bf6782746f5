"""An agent works in a folder of the host, or in a copy of it in E2B, and its changes come back as a patch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from e2b import Sandbox as E2BApi

from host_client import (
    AgentResult,
    Changes,
    LocalSandbox,
    Sandbox,
    Session,
    Workspace,
    events,
    open_session,
    run_agent,
)
from host_client.errors import ConfigurationError, FolderChangedError, SandboxError, SandboxGoneError
from host_client.sandbox.e2b._connection import api_params
from host_client.workspace import SessionFolder
from host_client.workspace import _program as program
from host_client.workspace._baseline import read_baseline
from tests.support.hosts import e2b_lab, host_lab, views
from tests.support.told_sandbox import ToldSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

Kind = Literal["local", "e2b"]
BOTH = pytest.mark.parametrize("kind", ["local", "e2b"])
SCRIPT = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{{name: Bash, input: {{command: {command}}}}}]
          - text: Done.
"""
WORK = r"""
set -e
printf 'two\n' > text; printf '\0\377changed' > binary; rm gone; mv moved 'to here'; chmod +x plain
printf 'new' > "$(printf 'caf\351')"; mkdir -p deep/er empty/inner; echo x > deep/er/file; ln -s ../text deep/link
rm file_to_folder; mkdir file_to_folder; echo in > file_to_folder/in; rm -r folder_to_file; echo other > folder_to_file
echo ignored > out.log; git -c core.quotePath=false status --short > /dev/null
"""
LONG = "".join(f"line {number}\n" for number in range(50))


def git(folder: Path, *args: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *args]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def content(folder: Path) -> dict[bytes, tuple[bytes | str, int | None]]:
    """Return each file, link and empty folder of a folder but ``.git``, with what is in it and its executable bit."""
    found: dict[bytes, tuple[bytes | str, int | None]] = {}
    for directory, folders, names in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if name != b".git"]
        for name in (*names, *folders):
            path = os.path.join(directory, name)
            key = os.path.relpath(path, os.fsencode(folder))
            if os.path.islink(path):
                found[key] = (os.readlink(path), None)
            elif os.path.isfile(path):
                found[key] = (Path(os.fsdecode(path)).read_bytes(), os.lstat(path).st_mode & 0o111)
            elif not os.listdir(path):
                found[key] = ("empty", None)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in git with files that are tracked, changed, untracked and ignored."""
    folder = tmp_path / "project"
    (folder / "folder_to_file").mkdir(parents=True)
    for name, text in {
        **{"text": "one\n", "binary": "\0", "gone": "gone\n", "moved": LONG, "plain": "p\n", "file_to_folder": "f\n"},
        **{"folder_to_file/a": "a\n", ".gitignore": "*.log\n.env\n", "dirty": "committed\n"},
    }.items():
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    (folder / "dirty").write_text("not committed\n")
    (folder / "untracked").write_text("untracked\n")
    (folder / ".env").write_text("SECRET=1\n")
    (folder / "runs").mkdir()
    return folder


@asynccontextmanager
async def place(kind: Kind, command: str) -> AsyncGenerator[tuple[Sandbox, Mapping[str, str], Path | None]]:
    """Serve a model that runs one command; return a sandbox, the environment, and E2B's working directory."""
    script = SCRIPT.format(command=json.dumps(command))
    if kind == "local":
        with host_lab(script) as lab:
            yield LocalSandbox(), lab.environ, None
    else:
        with e2b_lab(script) as lab:
            yield lab.sandbox(), lab.environ, lab.work


async def run(kind: Kind, command: str, cwd: Path | Workspace, **more: Any) -> AgentResult:
    async with place(kind, command) as (sandbox, environ, _):
        return await run_agent("go", sandbox=sandbox, environ=environ, cwd=cwd, approvals="auto", **more)


def states(changes: Changes) -> dict[str, str]:
    return {change.path: change.state for change in changes.files}


@BOTH
async def test_every_kind_of_change_comes_back_and_is_applied(kind: Kind, project: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(project, twin, symlinks=True)
    before = content(project)
    index, head = (project / ".git/index").read_bytes(), git(project, "rev-parse", "HEAD")
    result = await run(kind, WORK, project)
    changes = result.changes
    assert result.error_type is None, result.error_message
    assert changes is not None
    assert states(changes) == {
        **{"text": "modified", "binary": "modified", "plain": "modified", "gone": "deleted", "to here": "renamed"},
        **{"caf\udce9": "added", "deep/er/file": "added", "deep/link": "added"},
        **{"file_to_folder": "deleted", "file_to_folder/in": "added"},
        **{"folder_to_file": "added", "folder_to_file/a": "deleted"},
    }
    assert [change.old_path for change in changes.files if change.state == "renamed"] == ["moved"]
    assert changes.folders == ("empty/inner",)
    assert changes.left_out == ()
    if kind == "e2b":
        assert content(project) == before
    await changes.apply()
    await changes.apply(twin)
    assert {path: found for path, found in content(project).items() if path != b"out.log"} == content(twin)
    assert content(twin)[b"caf\xe9"] == (b"new", 0)
    assert content(twin)[b"plain"] == (b"p\n", 0o111)
    assert content(twin)[b"binary"] == (b"\0\xffchanged", 0)
    assert content(twin)[b"deep/link"] == (b"../text", None)
    assert (project / ".git/index").read_bytes() == index
    assert git(project, "rev-parse", "HEAD") == head
    assert git(project, "stash", "list") == ""


async def test_e2b_gets_gits_view_of_the_folder_in_a_clean_repository(project: Path) -> None:
    command = (
        "git status --short > /tmp/status; find . -path ./.git -prune -o -print | sort; git status --short; id -un"
    )
    (project / "link").symlink_to("/etc/passwd")
    (project / "caf\udce9").write_text("latin")
    (project / "program").write_text("#!/bin/sh\n")
    (project / "program").chmod(0o755)
    check = "stat -c '%a %U' program; readlink link; ls -d runs; ls"
    outputs: list[str] = []
    async with place("e2b", f"{command}; {check}") as (sandbox, environ, work):
        assert work is not None
        async with open_session("go", sandbox=sandbox, environ=environ, cwd=project, approvals="auto") as session:
            sent = session.sent_folder
            await session.finish()
            outputs += [str(event.data.content) async for event in session if isinstance(event, events.ToolResult)]
            changes = await session.changes()
    (output,) = outputs
    for present in ("./untracked", "./dirty", "./.gitignore", "./runs", "755 nobody", "/etc/passwd"):
        assert present in output
    for absent in (".env\n", "?? ", " M ", "SECRET"):
        assert absent not in output
    assert sent is not None
    assert (sent.files, sent.is_in_git) == (13, True)
    assert not changes
    assert changes.patch == b""


@BOTH
async def test_a_folder_outside_git_and_a_session_without_changes(kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    for name in ("node_modules/x", "src/a.py", ".env", "src/__pycache__/a.pyc", "build/out", "sub/.venv/y"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("build\n")
    result = await run(kind, "ls -A . src; mkdir -p node_modules .venv; touch node_modules/z .venv/z", folder)
    assert result.changes is not None
    assert not result.changes
    assert not (folder / ".git").exists()


async def test_a_folder_that_its_repository_ignores_is_sent_by_its_own_rules(project: Path) -> None:
    for name in ("out.log/sub/a", "out.log/sub/.env", "out.log/sub/mine", "out.log/sub/venv/x"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / "out.log/sub/.gitignore").write_text("mine\n")
    result = await run("e2b", "ls -A > listing", project / "out.log/sub")
    assert result.changes is not None
    assert b"+.git\n+.gitignore\n+a\n+listing\n" in result.changes.patch


@BOTH
async def test_the_state_at_a_time_can_be_asked_for_while_the_agent_runs_and_the_last_one_after_it(
    kind: Kind, project: Path
) -> None:
    async with place(kind, "echo by the agent > made") as (sandbox, environ, work):
        async with open_session(None, sandbox=sandbox, environ=environ, cwd=str(project), approvals="auto") as session:
            assert not await session.changes()
            (work or project).joinpath("early").write_text("e")
            assert states(await session.changes()) == {"early": "added"}
            await session.send("go")
            await session.finish()
            _ = [event async for event in session]
        last = await session.changes()
    assert states(last) == {"early": "added", "made": "added"}
    assert last is session.last_changes


async def test_the_changes_of_a_failed_session_are_kept(project: Path) -> None:
    opened: list[Session] = []
    async with place("e2b", "true") as (sandbox, environ, work):
        assert work is not None
        with pytest.raises(RuntimeError):
            async with open_session(None, sandbox=sandbox, environ=environ, cwd=project) as session:
                opened.append(session)
                (work / "made").write_text("m")
                raise RuntimeError
        assert states(await opened[0].changes()) == {"made": "added"}


async def test_a_sandbox_that_is_gone_takes_the_changes_with_it_and_says_so(project: Path) -> None:
    with e2b_lab(SCRIPT.format(command="'true'")) as lab:
        async with open_session(None, sandbox=lab.sandbox(), environ=lab.environ, cwd=project) as session:
            (made,) = lab.e2b.sandboxes
            await asyncio.to_thread(E2BApi.kill, made.id, **api_params(lab.e2b.environ))
            with pytest.raises(SandboxGoneError):
                await session.changes()
        with pytest.raises(SandboxGoneError):
            await session.changes()
        assert session.last_changes is None


MEANWHILE: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda folder: (folder / "text").write_text("mine\n"), "text"),
    (lambda folder: (folder / "text").chmod(0o755), "text"),
    (lambda folder: (folder / "text").unlink(), "text"),
    (lambda folder: (folder / "made").write_text("mine\n"), "made"),
    (lambda folder: (folder / "made").symlink_to("/nowhere"), "made"),
    (lambda folder: (folder / "inner").symlink_to("/tmp"), "inner/made"),
    (lambda folder: (folder / "inner").write_text("mine\n"), "inner/made"),
)


async def test_nothing_is_applied_over_what_changed_meanwhile(project: Path, tmp_path: Path) -> None:
    result = await run("e2b", "echo 2 > text; echo > made; mkdir inner; echo > inner/made; rm gone", project)
    assert result.changes is not None
    for number, (change, named) in enumerate(MEANWHILE):
        folder = tmp_path / f"copy-{number}"
        shutil.copytree(project, folder, symlinks=True)
        change(folder)
        before = content(folder)
        with pytest.raises(FolderChangedError, match=f"since the session began, '{named}' changed there") as refused:
            await result.changes.apply(folder)
        assert refused.value.paths == (named,)
        assert content(folder) == before


async def test_a_patch_that_cannot_be_written_as_a_whole_changes_nothing(project: Path) -> None:
    """The second file is larger than a process may write, so git fails between two files."""
    command = "rm gone; mkdir aaa; echo small > aaa/first; head -c 100000 /dev/urandom > zzz; echo 2 > text"
    result = await run("e2b", command, project)
    assert result.changes is not None
    before = content(project)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ConfigurationError, match="the changes were not applied"):
            await result.changes.apply()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(project) == before
    assert not (project / "aaa").exists()
    await result.changes.apply()
    assert (project / "zzz").stat().st_size == 100_000


async def test_more_than_the_limit_is_refused_before_a_sandbox_is_made(project: Path, tmp_path: Path) -> None:
    with e2b_lab(SCRIPT.format(command="'true'")) as lab:
        for cwd, says in {
            Workspace(project, max_bytes=100): "has 441 bytes in 10 files, at most 100 bytes",
            Workspace(project, max_files=5): "has more than 5 files",
            Workspace(Path.home()): "is or holds your home directory",
            Workspace("/"): "is or holds your home directory",
        }.items():
            with pytest.raises(ConfigurationError, match=says):
                async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=cwd):
                    pass
        assert lab.e2b.sandboxes == []
    with pytest.raises(ConfigurationError, match="is not a directory on this machine"):
        Workspace(tmp_path / "missing")


async def test_a_local_agent_works_in_a_folder_that_is_too_large_for_changes(project: Path) -> None:
    async with place("local", "touch made") as (sandbox, environ, _):
        cwd = Workspace(project, max_bytes=100)
        async with open_session("go", sandbox=sandbox, environ=environ, cwd=cwd, approvals="auto") as session:
            await session.finish()
            _ = [event async for event in session]
        with pytest.raises(ConfigurationError, match="at most 100 bytes"):
            await session.changes()
    assert (project / "made").exists()


async def test_what_is_too_large_to_come_back_is_named_and_the_rest_comes(project: Path) -> None:
    command = "head -c 5000 /dev/zero > large; echo small > small; echo changed > text"
    result = await run("e2b", command, Workspace(project, max_bytes=1000))
    assert result.changes is not None
    assert states(result.changes) == {"small": "added", "text": "modified"}
    assert result.changes.left_out == ("large is more than the limit of changes allows",)


@BOTH
async def test_submodules_and_repositories_within_are_files_like_others(
    kind: Kind, project: Path, tmp_path: Path
) -> None:
    other = project / "vendor"
    other.mkdir()
    (other / "lib").write_text("lib\n")
    (other / ".gitignore").write_text("cache\n")
    git(other, "init", "-q")
    git(other, "add", "-A")
    git(other, "commit", "-qm", "lib")
    git(project, "add", "vendor")
    (other / "cache").write_text("stays")
    result = await run(kind, "cat vendor/cache; echo 2 > vendor/lib; git init -q new; echo n > new/file", project)
    assert result.changes is not None
    assert states(result.changes) == {"vendor/lib": "modified", "new/file": "added"}


@BOTH
@pytest.mark.parametrize("is_in_git", [True, False])
async def test_repositories_within_keep_the_rules_of_the_folder_too(
    kind: Kind, is_in_git: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "sub/inner/deep").mkdir(parents=True)
    for repository in ("sub", "sub/inner", *(["."] if is_in_git else [])):
        git(folder / repository, "init", "-q")
    (folder / ".gitignore").write_text("*.pem\n.env\n")
    (folder / "sub/.gitignore").write_text("mine\n")
    for path in ("key.pem", ".env", "mine", "deep/key.pem"):
        (folder / "sub/inner" / path).write_text("stays")
    (folder / "sub/tracked.pem").write_text("tracked")
    (folder / "sub/file").write_text("goes up")
    git(folder / "sub", "add", "--force", "tracked.pem")
    git(folder / "sub", "commit", "-qm", "first")
    command = "found=$(find . -path '*.git/*' -prune -o -type f -print | sort); echo \"$found\" > sub/listing"
    result = await run(kind, command, folder)
    assert result.changes is not None
    assert states(result.changes) == {"sub/listing": "added"}
    if kind == "e2b":
        assert b"+./sub/file\n+./sub/tracked.pem\n" in result.changes.patch
        assert b"inner" not in result.changes.patch


async def test_a_submodule_without_its_repository_is_sent_as_plain_files(project: Path) -> None:
    (project / "vendor").mkdir()
    (project / "vendor/.git").write_text("gitdir: ../gone\n")
    for name in ("lib", ".env", "x.log"):
        (project / "vendor" / name).write_text("x")
    result = await run("e2b", "cd vendor && ls -A > listing", project)
    assert result.changes is not None
    assert b"+lib\n+listing\n" in result.changes.patch
    assert b".env" not in result.changes.patch


def test_a_folder_whose_repository_git_cannot_read_is_refused_with_advice(project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/.git").mkdir(parents=True)
    for folder in (project / ".git", tmp_path / "empty"):
        with pytest.raises(ConfigurationError, match=r"git cannot read its repository .*: repair .* or name a folder"):
            read_baseline(folder, 100, 1000, pack=True)


def test_a_file_that_is_removed_while_the_folder_is_read_is_no_part_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = program.read

    def read_last(root: bytes, entry: program.Entry, max_bytes: int) -> bytes:
        content = read(root, entry, max_bytes)
        if entry.path == b"text":
            (project / "text").unlink()
        return content

    monkeypatch.setattr(program, "read", read_last)
    with contextlib.closing(read_baseline(project, 100, 1000, pack=True)) as base:
        assert b"text" not in base.digests
        assert b"untracked" in base.digests


@BOTH
async def test_the_rules_of_folders_above_and_of_the_user_hold(kind: Kind, project: Path) -> None:
    inner = project / "inner"
    inner.mkdir()
    (inner / "a").write_text("a\n")
    (project / ".git/info/exclude").write_text("mine\n/inner/anchored\n/other\n")
    (project / ".gitignore").write_text("*.log\n.env\nout/\n!keep.log\n")
    command = "mkdir out; touch x.log keep.log mine anchored other out/x"
    result = await run(kind, command, inner)
    assert result.changes is not None
    assert states(result.changes) == {"keep.log": "added", "other": "added"}


async def test_a_new_file_that_only_the_folder_at_home_ignores_stays_away_from_the_users_own(project: Path) -> None:
    """A pattern with a wildcard in its folder cannot be told to the sandbox."""
    inner = project / "packages/one"
    inner.mkdir(parents=True)
    (inner / "secret").write_text("mine")
    (project / ".gitignore").write_text("packages/*/secret\n")
    result = await run("e2b", "echo theirs > secret; echo new > made", inner)
    assert result.changes is not None
    assert states(result.changes) == {"made": "added"}
    assert result.changes.left_out == ("secret is ignored in the folder",)
    await result.changes.apply()
    assert (inner / "secret").read_text() == "mine"
    assert (inner / "made").exists()


@BOTH
async def test_new_files_that_a_gitignore_of_the_agent_hides_are_named(kind: Kind, project: Path) -> None:
    command = r"mkdir -p sub/out sub/only; touch sub/out/a sub/out/b sub/only/a.tmp x.log x.tmp"
    result = await run(kind, command + r"; printf 'out/\n*.tmp\n' > sub/.gitignore", project)
    assert result.changes is not None
    assert states(result.changes) == {"sub/.gitignore": "added", "x.tmp": "added"}
    assert sorted(result.changes.left_out) == [
        "sub/only/a.tmp is ignored by a .gitignore that changed",
        "sub/out is ignored by a .gitignore that changed",
    ]


@BOTH
async def test_links_that_lead_out_pipes_and_unreadable_files_are_named(kind: Kind, project: Path) -> None:
    result = await run(kind, "ln -s /etc/passwd out; ln -s ../.. up; mkfifo pipe; ln -s text in", project)
    assert result.changes is not None
    assert states(result.changes) == {"in": "added"}
    assert sorted(text.partition(" ")[0] for text in result.changes.left_out) == ["out", "pipe", "up"]


async def test_what_the_agent_hides_is_not_taken_for_deleted(project: Path) -> None:
    (project / "shut").mkdir()
    (project / "shut/file").write_text("f")
    result = await run("e2b", "chmod 0 shut text; rm gone", project)
    assert result.changes is not None
    assert states(result.changes) == {"gone": "deleted"}
    assert len(result.changes.left_out) == 2


async def test_the_session_says_how_much_was_sent_without_names(project: Path) -> None:
    result = await run("e2b", "true", project)
    (root,) = [span for span in result.spans if span.name == "agent.session"]
    (event,) = [event for event in root.events if event.name == "upload"]
    attributes = dict(event.attributes or {})
    assert attributes.pop("sandbox.upload.duration_ms") > 0  # pyright: ignore[reportOperatorIssue]
    assert attributes == {"sandbox.upload.files": 10, "sandbox.upload.bytes": 441}
    assert "untracked" not in str([view.attributes for view in views(result.spans)])


async def test_what_does_not_fit_together_is_told(project: Path) -> None:
    with e2b_lab(SCRIPT.format(command="'true'")) as lab:
        with pytest.raises(ConfigurationError, match="cwd and upload exclude each other"):
            async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=project, upload=project):
                pass
        with pytest.raises(ConfigurationError, match="a session that is resumed has its files"):
            async with open_session(sandbox=lab.sandbox("paused"), environ=lab.environ, cwd=project):
                pass
        with pytest.raises(ConfigurationError, match="a ToldSandbox takes no cwd"):
            async with open_session(sandbox=ToldSandbox("1" * 32), environ=lab.environ, cwd=project):
                pass
        with pytest.raises(ConfigurationError, match="exclude each other: give one"):
            async with open_session(sandbox=LocalSandbox(work=project.parent), environ=lab.environ, cwd=project):
                pass
        with pytest.raises(ConfigurationError, match=r'cwd takes a folder of this machine, such as ".", not 1'):
            async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=1):  # pyright: ignore[reportArgumentType]
                pass
        (lab.work / "there").touch()
        with pytest.raises(SandboxError, match="the working directory is not empty, it has 'there'"):
            async with open_session(sandbox=lab.sandbox(), environ=lab.environ, cwd=project):
                pass
        with pytest.raises(ConfigurationError, match="the session has no folder: give open_session a cwd"):
            async with open_session(sandbox=lab.sandbox(), environ=lab.environ) as session:
                await session.changes()


@BOTH
async def test_a_working_folder_that_the_agent_removed_is_told(kind: Kind, project: Path) -> None:
    async with place(kind, "true") as (sandbox, environ, work):
        async with open_session(None, sandbox=sandbox, environ=environ, cwd=project) as session:
            removed = work or project
            shutil.rmtree(removed)
            with pytest.raises(SandboxError, match=f"the working folder {removed} no longer exists"):
                await session.changes()
        with pytest.raises(SandboxError, match=f"the working folder {removed} no longer exists"):
            await session.changes()


async def test_an_interrupted_end_leaves_no_process_and_no_temporary_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git never ends; it tells its process id."""
    told, programs, temporary = tmp_path / "told", tmp_path / "programs", tmp_path / "temporary"
    os.mkfifo(told)
    programs.mkdir()
    temporary.mkdir()
    (programs / "git").write_text(f"#!/bin/sh\necho $$ > {told}\nexec sleep 600\n")
    (programs / "git").chmod(0o755)
    sandbox, folder = LocalSandbox(), SessionFolder(project)
    await folder.begin(sandbox)
    await sandbox.create({})
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(temporary))
    closing = asyncio.create_task(folder.close(sandbox, is_created=True))
    process_id = (await asyncio.to_thread(told.read_text)).strip()
    assert os.listdir(temporary)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert process_id not in os.listdir("/proc")
    assert os.listdir(temporary) == []
    with pytest.raises(SandboxError, match="the end was interrupted, so the changes are not known"):
        await folder.changes(sandbox)
    await sandbox.close()
