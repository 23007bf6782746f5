"""A host ends the processes of a local sandbox, also those that hide their memory from it."""

from __future__ import annotations

import subprocess
import sys

from host_client.sandbox import local
from tests.support.account import ACCOUNT, need_root

HIDDEN = f"""
import os, pwd, sys
from agent_runner.contract.prctl import SET_DUMPABLE, prctl
os.setuid(pwd.getpwnam({ACCOUNT!r}).pw_uid)
prctl(SET_DUMPABLE, 0)
print("up", flush=True)
sys.stdin.read()
"""

END = f"""
import os, pwd, sys
from host_client.sandbox import local
os.setuid(pwd.getpwnam({ACCOUNT!r}).pw_uid)
open(f"/proc/{{sys.argv[2]}}/stat").close()
try:
    open(f"/proc/{{sys.argv[2]}}/environ").close()
except PermissionError:
    local._kill_marked(sys.argv[1])
"""


def test_a_host_without_root_ends_a_runner_whose_memory_it_cannot_read() -> None:
    need_root()
    name = "local-0123456789ab"
    command = [sys.executable, "-X", local.mark_option(name), "-c", HIDDEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hidden:
        assert hidden.stdout is not None
        assert hidden.stdout.readline() == b"up\n"
        subprocess.run([sys.executable, "-c", END, name, str(hidden.pid)], check=True)
        assert hidden.wait(timeout=30) == -9
