"""`host_client run --cwd` works in a folder, or in a copy of it in E2B, and hands the changes over."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_commands import piped
from tests.e2e.test_e2b_commands import host_client
from tests.support.hosts import e2b_lab, host_lab

SCRIPT = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: "echo two > text; echo new > made"}}]
          - text: Done.
"""
FAILS = SCRIPT.replace("- text: Done.", "- {text: Never., fail: [{status: 400, times: 9}]}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "repository" / "inner"
    folder.mkdir(parents=True)
    (folder / "text").write_text("one\n")
    (folder / "secret").write_text("stays\n")
    (folder.parent / ".gitignore").write_text("secret\n")
    subprocess.run(["git", "init", "-q", folder.parent], check=True)
    return folder


def arguments(project: Path, *more: str) -> tuple[str, ...]:
    return ("run", "go", "--approvals", "auto", "--cwd", str(project), *more)


def test_a_run_in_e2b_puts_its_changes_on_the_folder(tmp_path: Path, project: Path) -> None:
    with e2b_lab(SCRIPT) as lab:
        done = host_client(lab, tmp_path, *arguments(project, "--apply", "--patch", str(tmp_path / "out.patch")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sent {project}: 1 files, 4 bytes; what .gitignore names stayed here" in done.stdout
    assert "2 files changed: 1 added, 1 modified\n" in done.stdout
    assert f"applied to {project}\n" in done.stdout
    assert (project / "text").read_text() == "two\n"
    assert (project / "made").read_text() == "new\n"
    assert b"+two\n" in (tmp_path / "out.patch").read_bytes()


def test_without_apply_the_command_that_is_told_puts_the_changes_on_the_folder(tmp_path: Path, project: Path) -> None:
    for setting in (("core.autocrlf", "true"), ("apply.whitespace", "fix")):
        subprocess.run(["git", "-C", project, "config", *setting], check=True)
    with e2b_lab(SCRIPT.replace("echo new", "printf 'new  \\n'")) as lab:
        done = host_client(lab, tmp_path, *arguments(project), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (project / "made").exists()
    (command,) = re.findall(r"^not applied; --apply does it at the end of a run, or now: (.*)$", done.stdout, re.M)
    subprocess.run(shlex.split(command), check=True, cwd="/")
    assert (project / "text").read_bytes() == b"two\n"
    assert (project / "made").read_bytes() == b"new  \n"


def test_new_empty_folders_alone_are_named_without_a_patch(tmp_path: Path, project: Path) -> None:
    with e2b_lab(SCRIPT.replace("echo two > text; echo new > made", "mkdir -p one/in two")) as lab:
        done = host_client(lab, tmp_path, *arguments(project), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no file changed\nnew empty folders: one/in, two\n" in done.stdout
    assert "git -C" not in done.stdout
    assert list(tmp_path.glob("sandspan-*.patch")) == []


def test_what_cannot_be_applied_is_kept_as_a_patch(tmp_path: Path, project: Path) -> None:
    os.mkfifo(project / "made")  # it does not go up, and is in the way of what comes back
    with e2b_lab(SCRIPT) as lab:
        done = host_client(lab, tmp_path, *arguments(project, "--apply"), TMPDIR=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"nothing was applied to {project}: since the session began, 'made' changed there" in done.stdout
    (patch,) = tmp_path.glob("sandspan-*.patch")
    assert f"patch: {patch}\n" in done.stdout
    assert b"+two\n" in patch.read_bytes()
    assert (project / "text").read_text() == "one\n"


def test_what_fails_while_it_is_applied_is_kept_as_a_patch_with_the_command(tmp_path: Path, project: Path) -> None:
    """git cannot write to the name of a file that is too long for the folder at home."""
    deep = project
    while len(str(deep)) < 3900:
        deep = deep / ("d" * min(150, 3990 - len(str(deep))))
    deep.mkdir(parents=True)
    (deep / "text").write_text("one\n")
    with e2b_lab(SCRIPT.replace("echo new > made", f"mkdir -p {'n' * 200} && echo new > {'n' * 200}/made")) as lab:
        done = host_client(lab, tmp_path, *arguments(deep, "--apply"), TMPDIR=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "File name too long. Remove the cause and apply them again" in done.stdout
    (patch,) = tmp_path.glob("sandspan-*.patch")
    assert "not applied; to do it later: git -C " in done.stdout
    assert b"+two\n" in patch.read_bytes()
    assert (deep / "text").read_text() == "one\n"


def test_the_changes_of_a_run_that_failed_are_not_applied_but_kept(tmp_path: Path, project: Path) -> None:
    with e2b_lab(FAILS) as lab:
        done = host_client(lab, tmp_path, *arguments(project, "--apply", "--patch", str(tmp_path / "out.patch")))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not applied; to do it later: git -C " in done.stdout
    assert (project / "text").read_text() == "one\n"
    assert b"+two\n" in (tmp_path / "out.patch").read_bytes()


def test_a_local_run_works_in_the_folder_and_has_nothing_to_apply(tmp_path: Path, project: Path) -> None:
    with host_lab(SCRIPT) as lab:
        done = piped(tmp_path, *arguments(project, "--apply"), model=lab.model)
    shown = done.stdout.decode()
    assert done.returncode == 0, shown + done.stderr.decode()
    assert "2 files changed: 1 added, 1 modified\n" in shown
    assert f"the agent works in {project} itself, not in a copy\nstarting the sandbox" in shown
    assert f"nothing to apply: the agent worked in {project} itself" in shown
    assert (project / "made").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--apply",), "--apply needs --cwd"),
        (("--patch", "x.patch"), "--patch needs --cwd"),
        (("--cwd", "no/such/folder"), "cwd no/such/folder is not a directory on this machine"),
        (("--cwd", ".", "--cwd-mib", "0"), "--cwd-mib takes a number above 0"),
        (("--cwd", ".", "--patch", "/no/such/folder/x"), "--patch /no/such/folder/x: there is no directory"),
        (("--cwd", ".", "--upload", "."), "--upload and --cwd exclude each other"),
    ],
)
def test_options_of_a_folder_that_do_not_fit_are_told(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    done = piped(tmp_path, "run", "go", *args)
    assert done.returncode == 2
    assert says in done.stderr.decode()
