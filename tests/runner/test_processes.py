"""No process below a runner survives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.runs import is_gone

ROOT = Path(__file__).resolve().parents[2]

# Run in a process of its own, which becomes the reaper of all below it.
PARENT = """
import subprocess, sys
from agent_runner.contract.processes import Descendants

sys.setrecursionlimit(100)  # in place of 1,000: a chain of so many processes takes a while
below = Descendants()
child = subprocess.Popen(
    ["bash", "-c", "read -r; " + sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
below.started()
# Only now does the script go on: what it orphans is not there yet to be taken for the child that is our own.
print(file=child.stdin, flush=True)
pids = [child.stdout.readline().strip() for _ in range(int(sys.argv[2]))]
print(*pids, flush=True)
below.end(grace=0.2)
assert child.wait() != 0, "the child's own end is left for whoever started it"
"""


def end_of(script: str, lines: int) -> list[int]:
    """Run a shell script that prints this number of pids, end it, and return the pids."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT, script, str(lines)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [int(pid) for pid in done.stdout.split()]


def test_children_of_children_are_ended() -> None:
    pids = end_of("sleep 600 & echo $!; echo $$; wait; exit 3", 2)
    assert [is_gone(pid) for pid in pids] == [True, True]


def test_a_long_chain_of_processes_is_ended() -> None:
    chain = "chain() { if [ $1 = 0 ]; then sleep 600; else echo $BASHPID; (chain $(($1 - 1))); exit; fi; }; chain 120"
    assert all(is_gone(pid) for pid in end_of(chain, 120))


def test_what_ignores_the_request_is_killed() -> None:
    pids = end_of("""bash -c 'trap "" TERM; echo $$; while :; do sleep 1; done' & echo $$; wait; exit 3""", 2)
    assert [is_gone(pid) for pid in pids] == [True, True]


def test_what_left_its_session_is_ended_too() -> None:
    pids = end_of("(setsid sh -c 'echo $$; exec sleep 600' &); echo $$; sleep 600", 2)
    assert [is_gone(pid) for pid in pids] == [True, True]
