"""When one process of a run is killed, all others end."""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from agent_runner.contract import protocol
from agent_runner.contract.protocol import Prompt
from tests.support.account import ACCOUNT, account_environment, account_lab, cli_binary, need_root
from tests.support.runs import WAIT_SECONDS, Lab, RunnerProcess, children, is_gone

__all__ = ["cli_binary"]

MakeLab = Callable[[str], Lab]

ROOT = Path(__file__).resolve().parents[2]
HI = "conversations: {main: {replies: [{text: Hi.}]}}"
ALLOWED = ("--allowed-tools", "Bash")
KILLED = -signal.SIGKILL


def bash(command: str) -> str:
    """Return a script whose first reply runs a command."""
    reply = {"tools": [{"name": "Bash", "input": {"command": command}}]}
    return json.dumps({"conversations": {"main": {"replies": [reply, {"text": "Done."}]}}})


TREE = bash(
    "mkfifo stray; (setsid env -i sh -c 'echo $$ > stray; exec sleep 600' &); "
    "read stray < stray; echo $$ $stray > up; sleep 600"
)
"""A script whose tool starts a stray process: in a session of its own, an orphan, without environment."""

FORKS = """
import os
os.open("alive", os.O_WRONLY)
open("up", "w").write("up")
for _ in range(100_000):  # a minute or two
    if os.fork():
        os._exit(0)
"""
"""A program whose process ends as soon as it has started the next one; each holds the fifo ``alive`` open."""


class Tree(NamedTuple):
    """The processes of a run; ``outer`` and ``inner`` are its guardians."""

    outer: int
    inner: int
    runner: int
    cli: int
    tool: int
    stray: int


def start_tree(lab: Lab, *args: str, **env: str) -> tuple[RunnerProcess, Tree]:
    """Start a run of `TREE`; return it when all its processes run."""
    up = lab.fifo()
    os.chmod(lab.cwd / "up", 0o666)
    started = lab.start("--prompt", "go", *args, env=env)
    tool, stray = map(int, up.read().split())
    (inner,) = children(started.process.pid)
    (cli,) = {*children(started.pid)} - {stray}  # which the runner has adopted
    return started, Tree(started.process.pid, inner, started.pid, cli, tool, stray)


def kill(tree: Tree, victim: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to one process of a run, or to the process group that its host knows."""
    if victim == "group":
        os.killpg(tree.outer, number)
    else:
        os.kill(tree._asdict()[victim], number)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], WAIT_SECONDS)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)


LAST = {"runner": "outer", "inner": "outer", "outer": "inner", "group": "inner"}
"""For each victim, the process that ends last, after it has ended all others."""

victims = pytest.mark.parametrize("victim", LAST)


def assert_all_end(started: RunnerProcess, tree: Tree, last: str) -> None:
    """Check that no process of a run is left when the last one ends, and that the host sees a killed runner."""
    pids = tree._asdict()
    wait_for_end(pids.pop(last))
    pids.pop("outer", None)  # a zombie, until `finish`
    assert [name for name, pid in pids.items() if not is_gone(pid)] == []
    assert started.process.stdin is not None
    with pytest.raises(BrokenPipeError):
        os.write(started.process.stdin.fileno(), b"\n")
    done = started.finish()
    assert done.exit_code == KILLED
    assert done.types == ["start", "turn_start", "tool_use"]


@victims
def test_all_processes_end_when_one_is_killed(make_lab: MakeLab, victim: str) -> None:
    started, tree = start_tree(make_lab(TREE), *ALLOWED)
    kill(tree, victim)
    assert_all_end(started, tree, LAST[victim])


@victims
def test_the_processes_of_another_account_end_too(cli_binary: Path, victim: str) -> None:
    with account_lab(TREE) as lab:
        env = account_environment(lab, cli_binary)
        started, tree = start_tree(lab, "--permission-mode", "bypassPermissions", **env)
        assert {os.stat(f"/proc/{pid}").st_uid for pid in (tree.tool, tree.stray)} == {pwd.getpwnam(ACCOUNT).pw_uid}
        kill(tree, victim)
        assert_all_end(started, tree, LAST[victim])


def test_a_runner_that_hangs_ends_when_its_host_kills_it(make_lab: MakeLab) -> None:
    started, tree = start_tree(make_lab(TREE), *ALLOWED)
    kill(tree, "runner", signal.SIGSTOP)
    kill(tree, "inner", signal.SIGSTOP)
    kill(tree, "outer")
    assert_all_end(started, tree, "inner")


@victims
def test_a_process_that_forks_all_the_time_does_not_escape(make_lab: MakeLab, victim: str) -> None:
    lab = make_lab(bash(f"python3 -c '{FORKS}'"))
    up, alive = lab.fifo(), lab.fifo("alive")
    started = lab.start("--prompt", "go", *ALLOWED)
    up.read()
    (inner,) = children(started.process.pid)
    tree = Tree(started.process.pid, inner, started.pid, 0, 0, 0)
    kill(tree, victim)
    wait_for_end(tree._asdict()[LAST[victim]])
    assert alive.is_closed
    assert started.finish().exit_code == KILLED


def test_a_host_sees_that_the_runner_reads_and_writes_no_more_while_its_guardians_clean_up(make_lab: MakeLab) -> None:
    started, tree = start_tree(make_lab(TREE), *ALLOWED)
    assert started.process.stdin is not None
    for guardian in ("inner", "outer"):
        kill(tree, guardian, signal.SIGSTOP)
    kill(tree, "runner")
    started.until_end_of_output()
    wait_for_end(tree.runner)  # the kernel closes its stdout and its stdin one after the other
    with pytest.raises(BrokenPipeError):
        os.write(started.process.stdin.fileno(), b"\n")
    for guardian in ("inner", "outer"):
        kill(tree, guardian, signal.SIGCONT)
    assert_all_end(started, tree, "outer")


def test_the_exit_status_tells_the_signal_by_which_a_runner_crashed(make_lab: MakeLab) -> None:
    started, tree = start_tree(make_lab(TREE), *ALLOWED)
    kill(tree, "runner", signal.SIGSEGV)
    assert started.finish().exit_code == -signal.SIGSEGV
    assert is_gone(tree.stray)


def test_a_run_that_ends_leaves_no_process(make_lab: MakeLab) -> None:
    started = make_lab(HI).start("--prompt", "go")
    started.until(protocol.Result)
    (inner,) = children(started.process.pid)
    pids = [inner, started.pid, started.cli]
    assert started.finish().exit_code == 0
    assert [pid for pid in pids if not is_gone(pid)] == []


def test_a_run_can_be_suspended_and_resumed_from_a_terminal(make_lab: MakeLab) -> None:
    started = make_lab(HI).start()
    started.send(Prompt(text="go"))
    started.until(protocol.Result)
    pids = [started.process.pid, started.pid, started.cli]
    os.kill(started.process.pid, signal.SIGTSTP)
    limit = time.monotonic() + WAIT_SECONDS
    while [state(pid) for pid in pids] != ["T", "T", "T"]:
        assert time.monotonic() < limit
        os.sched_yield()
    os.kill(started.process.pid, signal.SIGCONT)
    assert started.finish().exit_code == 0


def state(pid: int) -> str:
    """Return a process's state; after its name, which may contain spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


WITHOUT_PRCTL = """
import ctypes, struct, platform
number = {"x86_64": 157, "aarch64": 167}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]  # prctl: EPERM
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
"""
"""Python code that forbids its process `prctl`, as some containers do, by a seccomp filter."""

WITH_A_THREAD = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"


@pytest.mark.parametrize("condition", [WITHOUT_PRCTL, WITH_A_THREAD])
def test_where_there_can_be_no_guardian_the_started_process_is_the_runner(condition: str) -> None:
    assert guarded(f"{condition}\nbefore = os.getpid()\nguard()\nprint(os.getpid() == before)") == ["True"]


LOOK = f"""
import time
import agent_runner.contract.prctl as p
os.setuid({pwd.getpwnam(ACCOUNT).pw_uid})
p.prctl(p.SET_DUMPABLE, 1)  # as after exec
outer = os.getpid()
guard()

def can_read(pid):
    try:
        return b"sk-ant" in open(f"/proc/{{pid}}/environ", "rb").read()
    except PermissionError:
        return False

until = time.monotonic() + {WAIT_SECONDS}
while any(map(can_read, (outer, os.getppid()))) and time.monotonic() < until:
    time.sleep(0.01)  # the guardians go on beside this process after the forks
for pid in (outer, os.getppid(), os.getpid()):
    print(can_read(pid))
"""


def test_a_process_of_the_same_account_cannot_read_the_environment_of_the_guardians() -> None:
    need_root()
    assert guarded(LOOK) == ["False", "False", "True"]


def guarded(program: str) -> list[str]:
    """Run a program that may call `guard`; return the words that it prints."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os\nfrom agent_runner._guardian import fork_below_guardians as guard\n{program}",
        ],
        env={"ANTHROPIC_API_KEY": "sk-ant-not-a-key"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
