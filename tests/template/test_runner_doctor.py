"""``agent_runner doctor`` checks the requirements of a run where it is to run."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

import agent_runner as agent_runner_package
from agent_runner._doctor import STATE
from tests.packaging.environments import Wheel, closure, new_environment

from .tools import agent_runner, clean


def test_all_is_well_here_and_each_check_is_a_line(tmp_path: Path) -> None:
    done = agent_runner("doctor", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert {line[:2] for line in lines} == {"✓ "}
    assert f"✓ claude-agent-sdk: {metadata.version('claude-agent-sdk')}" in lines
    assert [line for line in lines if line.startswith("✓ Claude CLI: ") and "(Claude Code)" in line]


def test_what_is_not_installed_is_named_with_what_installs_it(wheel: Wheel, tmp_path: Path) -> None:
    bare = new_environment(tmp_path / "venv", wheel, closure(wheel))
    done = bare.run("agent_runner", "doctor")
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if line.startswith("✗ claude-agent-sdk: ")]
    assert missing == ["✗ claude-agent-sdk: No module named 'claude_agent_sdk'. pip install 'sandspan[runner]'"]
    assert "✓ msgspec: " in done.stdout
    assert "✗ Claude CLI: not there: claude-agent-sdk is not installed\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_machine_that_is_no_image_fails_as_an_image(tmp_path: Path) -> None:
    done = agent_runner("doctor", "--image", "no-such-account", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert done.returncode == 1
    failed = {line[2:].partition(":")[0] for line in done.stdout.splitlines() if line.startswith("✗")}
    assert {"Account", "CLI mode", "Rights"} <= failed
    assert "Claude CLI: not started: there is no account no-such-account" in done.stdout
    assert "Error" not in done.stdout
    if not STATE.exists():
        assert f"As root: install -d -o root -m 0700 {STATE}\n" in done.stdout
        assert "TMPDIR" not in done.stdout
    assert "✗ Account: there is no account no-such-account. useradd --create-home no-such-account" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_what_is_installed_below_everybodys_directory_is_told_to_move(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    package = shared / "agent_runner"
    shutil.copytree(Path(agent_runner_package.__file__).parent, package)
    shared.chmod(0o1777)
    environ = {**clean(tmp_path, {}), "PYTHONPATH": str(shared)}
    done = agent_runner("doctor", "--image", "no-such-account", environ=environ, cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("✗ Files: ")]
    assert "Install into a directory that only root can write to, such as /opt" in line
    assert "no write permission" not in line


def test_the_runners_usage_names_it_within_80_columns(tmp_path: Path) -> None:
    done = agent_runner("--help", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert "agent_runner doctor [--image USER]" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["run", "attach", "doctor", "schema"])
def test_each_command_of_the_runner_has_a_help_without_markup(tmp_path: Path, command: str) -> None:
    done = agent_runner(command, "--help", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: agent_runner {command} [-h]")
    assert "``" not in done.stdout


def test_an_unknown_command_of_the_runner_is_named(tmp_path: Path) -> None:
    done = agent_runner("foo", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("agent_runner: unknown command 'foo'\n")
