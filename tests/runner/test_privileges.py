"""The CLI's account gets nothing of root's, and an unusable account is reported at once."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import protocol
from tests.support.account import ACCOUNT, account_environment, account_lab, cli_binary, need_root
from tests.support.runs import HANG, Lab, is_gone

__all__ = ["cli_binary"]

MakeLab = Callable[[str], Lab]

BYPASS = ("--permission-mode", "bypassPermissions")
LOOK = r"""
import glob, json, os, sys
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
wanted = ("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "CLAUDE_CONFIG_DIR", "CLAUDE_CODE_DISABLE_AUTO_MEMORY")
json.dump({
    "ids": os.getresuid() + os.getresgid(),
    "groups": os.getgroups(),
    "no_new_privs": status["NoNewPrivs"],
    "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
    "cwd": os.getcwd(),
    "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "env": {name: os.environ.get(name) for name in wanted},
}, sys.stdout)
"""


def bash(command: str) -> str:
    replies = [{"tools": [{"name": "Bash", "input": {"command": command}}]}, {"text": "Done."}]
    return json.dumps({"conversations": {"main": {"replies": replies}}})


@pytest.fixture
def entry() -> pwd.struct_passwd:
    return pwd.getpwnam(ACCOUNT)


def test_a_tool_has_nothing_of_roots(cli_binary: Path, entry: pwd.struct_passwd) -> None:
    with account_lab(bash(f"python3 - <<'E'\n{LOOK}E")) as lab:
        done = lab.run("--prompt", "go", *BYPASS, env={**account_environment(lab, cli_binary), "TMPDIR": "/root"})
        assert done.exit_code == 0
        assert done.of(protocol.Log) == [], "nothing to remark on"
        seen = json.loads(str(done.one(protocol.ToolResult).data.content))
        assert seen == {
            "ids": [entry.pw_uid] * 3 + [entry.pw_gid] * 3,
            "groups": os.getgrouplist(ACCOUNT, entry.pw_gid),
            "no_new_privs": "1",
            "capabilities": ["0" * 16] * 4,
            "cwd": str(lab.cwd),
            "descriptors": [0, 1, 2],
            "env": {
                "HOME": entry.pw_dir,
                "USER": ACCOUNT,
                "LOGNAME": ACCOUNT,
                "SHELL": seen["env"]["SHELL"],  # the CLI sets the one that it uses
                "TMPDIR": "",
                "CLAUDE_CONFIG_DIR": str(lab.home / ".claude"),
                "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            },
        }


def test_every_kind_of_tool_works_in_a_cli_that_cannot_be_read(cli_binary: Path) -> None:
    replies: list[Any] = [
        {"tools": [{"name": "Write", "input": {"file_path": "made.txt", "content": "a needle\n"}}]},
        {"tools": [{"name": "Read", "input": {"file_path": "made.txt"}}]},
        {"tools": [{"name": "Bash", "input": {"command": "rg needle . && grep -r needle . && find . -name made.txt"}}]},
        {
            "tools": [
                {
                    "name": "Agent",
                    "input": {
                        "description": "c",
                        "prompt": "Count",
                        "subagent_type": "general-purpose",
                        "run_in_background": False,
                    },
                }
            ]
        },
        {"text": "Done."},
    ]
    helper = {"when": "Count", "replies": [{"tools": [{"name": "Bash", "input": {"command": "ls"}}]}, {"text": "One."}]}
    with account_lab(json.dumps({"conversations": {"main": {"replies": replies}, "helper": helper}})) as lab:
        for reply in replies[:2]:
            reply["tools"][0]["input"]["file_path"] = str(lab.cwd / "made.txt")
        done = lab.run("--prompt", "go", *BYPASS, "--gateway", "on", env=account_environment(lab, cli_binary))
        assert done.exit_code == 0
        assert [result.data.is_error for result in done.of(protocol.ToolResult)] == [False] * 5
        assert pwd.getpwuid((lab.cwd / "made.txt").stat().st_uid).pw_name == ACCOUNT


@pytest.fixture
def setuid_id() -> Iterator[Path]:
    """Make a setuid program of root that prints its ids."""
    need_root()
    with account_lab("conversations: {main: {replies: []}}") as lab:
        program = lab.root / "id"
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        program.chmod(0o4755)
        told = subprocess.run([program, "-u"], user=ACCOUNT, capture_output=True, text=True, check=True)
        assert told.stdout == "0\n", "setuid programs have no effect here, so nothing is shown"
        yield program


def test_a_setuid_program_gains_a_tool_nothing(cli_binary: Path, setuid_id: Path, entry: pwd.struct_passwd) -> None:
    with account_lab(bash(f"{setuid_id} -u")) as lab:
        done = lab.run("--prompt", "go", *BYPASS, env=account_environment(lab, cli_binary))
        assert str(done.one(protocol.ToolResult).data.content).strip() == str(entry.pw_uid)


def test_a_signalled_run_ends_the_accounts_processes(cli_binary: Path) -> None:
    with account_lab(bash(HANG)) as lab:
        up = lab.fifo()
        os.chmod(lab.cwd / "up", 0o666)
        runner = lab.start("--prompt", "go", *BYPASS, env=account_environment(lab, cli_binary))
        tool, cli = int(up.read()), runner.cli
        assert os.stat(f"/proc/{tool}").st_uid == pwd.getpwnam(ACCOUNT).pw_uid
        runner.process.terminate()
        done = runner.finish()
        assert done.exit_code == 143
        assert is_gone(tool) and is_gone(cli)


def test_a_resumed_run_knows_the_cost_from_the_accounts_own_files(cli_binary: Path) -> None:
    with account_lab("conversations: {main: {replies: [{text: One.}, {text: Two.}]}}") as lab:
        env = account_environment(lab, cli_binary)
        first = lab.run("--prompt", "go", env=env).one(protocol.Result).data
        second = lab.run("--prompt", "on", "--resume", first.session_id, env=env)
        assert second.of(protocol.Log) == []
        assert second.one(protocol.Result).data.cost_usd == pytest.approx(first.cost_usd)


def test_a_cli_that_the_account_can_read_is_remarked_on(cli_binary: Path) -> None:
    cli_binary.chmod(0o755)
    try:
        with account_lab("conversations: {main: {replies: [{text: Hi.}]}}") as lab:
            done = lab.run("--prompt", "go", env=account_environment(lab, cli_binary))
    finally:
        cli_binary.chmod(0o711)
    assert done.exit_code == 0
    assert done.one(protocol.Log).data.text == (
        f"{cli_binary} is readable by nobody: tools can read and write the CLI's memory and streams, "
        "and so approve their own calls; make root its owner and 0711 its mode"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no-such-account", "there is no such account"),
        ("root", "is root itself: name an account without root's rights"),
    ],
)
def test_an_account_that_separates_nothing_is_refused(make_lab: MakeLab, name: str, why: str) -> None:
    need_root()
    done = make_lab("conversations: {main: {replies: []}}").run("--prompt", "go", "--user", name)
    assert done.exit_code == 2
    assert done.one(protocol.Error).data.message == f"AGENT_USER={name!r}: {why}"


def test_a_directory_the_account_cannot_enter_is_refused(make_lab: MakeLab) -> None:
    need_root()
    lab = make_lab("conversations: {main: {replies: []}}")
    os.chmod(lab.cwd, 0o700)
    done = lab.run("--prompt", "go", "--user", ACCOUNT)
    assert done.exit_code == 2
    assert done.one(protocol.Error).data.message.endswith("nobody cannot enter and read it")


def test_a_runner_that_is_not_root_cannot_start_as_somebody_else(tmp_path: Path) -> None:
    code = f"from agent_runner._privileges import find_account; find_account({ACCOUNT!r})"
    # Root's interpreter may be out of the account's reach, so it becomes the account itself.
    drop = "import os; os.geteuid() or (os.setgid(65534), os.setuid(65534)); "
    tried = subprocess.run(
        [sys.executable, "-c", "import agent_runner._privileges; " + drop + code], capture_output=True
    )
    assert b"AGENT_USER='nobody': the runner must be root to start the CLI as another account" in tried.stderr


def test_a_journal_that_somebody_else_made_is_refused(make_lab: MakeLab, tmp_path: Path) -> None:
    need_root()
    journal = tmp_path / "journal"
    journal.touch()
    os.chown(journal, 65534, 65534)
    done = make_lab("conversations: {main: {replies: []}}").run("--prompt", "go", "--journal", str(journal))
    assert done.exit_code == 2
    assert "belongs to another account" in done.one(protocol.Error).data.message


PERSONAL = "what a person keeps for themselves"


def test_a_run_reads_none_of_a_persons_own_files(make_lab: MakeLab) -> None:
    lab = make_lab(bash("echo $CLAUDE_CONFIG_DIR"))
    hook = {"hooks": {"PreToolUse": [{"hooks": [{"type": "command", "command": f"touch {lab.root / 'hooked'}"}]}]}}
    for directory in (lab.home / ".claude", lab.cwd, lab.cwd / ".claude"):
        directory.mkdir(exist_ok=True)
        (directory / "CLAUDE.md").write_text(PERSONAL)
        (directory / "settings.json").write_text(json.dumps(hook))
        (directory / "settings.local.json").write_text(json.dumps(hook))
    memory = lab.home / ".claude" / "projects" / str(lab.cwd).replace("/", "-") / "memory"
    memory.mkdir(parents=True)
    (memory / "MEMORY.md").write_text(PERSONAL)
    (lab.home / ".claude.json").write_text(json.dumps({"mcpServers": {"mine": {"command": "true"}}}))
    (lab.cwd / ".mcp.json").write_text(json.dumps({"mcpServers": {"theirs": {"command": "true"}}}))

    done = lab.run("--prompt", "go", "--allowed-tools", "Bash")
    assert str(done.one(protocol.ToolResult).data.content).strip() == str(lab.home / ".sandspan" / "claude")
    assert list((lab.home / ".sandspan" / "claude" / "projects").iterdir()) != [], "the CLI keeps its files elsewhere"
    assert PERSONAL not in str([request.body for request in lab.model.requests])
    assert not (lab.root / "hooked").exists()
    assert [tool for tool in done.one(protocol.Start).data.tools if tool.startswith("mcp__")] == []

    # The same files are read where somebody asks for it, so they are where the CLI would look.
    env = {"CLAUDE_CONFIG_DIR": str(lab.home / ".claude")}
    lab.run("--prompt", "go", "--allowed-tools", "Bash", "--setting-sources", "user,project,local", env=env)
    assert PERSONAL in str(lab.model.requests[-1].body)
    assert (lab.root / "hooked").exists()


def test_a_tool_finds_local_programs_where_roots_path_leaves_them_out(
    cli_binary: Path, entry: pwd.struct_passwd
) -> None:
    with account_lab(bash("echo $PATH")) as lab:
        environ = {**account_environment(lab, cli_binary), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = lab.run("--prompt", "go", *BYPASS, env=environ)
        assert done.exit_code == 0
        folders = str(done.one(protocol.ToolResult).data.content).strip().split(":")
        assert folders[:2] == [f"{entry.pw_dir}/.local/bin", "/usr/local/bin"]
        assert folders[-4:] == ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
