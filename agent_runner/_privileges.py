"""The account that the CLI and its tools run as, and what this process gives up before it starts them. Linux.

The Claude Agent SDK starts the CLI with another user id, and with that alone: group, supplementary groups
and the way back by a setuid program stay open. They are closed here, for this process and so for all below
it. It stays root otherwise, which is what its children cannot signal, trace or read.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import stat
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ._config import ConfigError

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class Account(NamedTuple):
    """An account of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def environment(self) -> dict[str, str]:
        """What a login sets, in place of root's. The temporary directory is the system's."""
        names = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {**names, "TMPDIR": "", "XDG_RUNTIME_DIR": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}

    def search_path(self, inherited: str) -> str:
        """Return PATH with the folders of local programs in front, which one of root's may leave out."""
        own = (f"{self.home}/.local/bin", "/usr/local/bin")
        given = inherited.split(os.pathsep)
        return os.pathsep.join([*(folder for folder in own if folder not in given), *given])


def find_account(name: str) -> Account:
    """Return the account that AGENT_USER names; raise `ConfigError` where it cannot be taken or separates nothing."""
    if os.geteuid() != 0:
        raise ConfigError(f"AGENT_USER={name!r}: the runner must be root to start the CLI as somebody else")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"AGENT_USER={name!r}: there is no such account") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"AGENT_USER={name!r}: is root itself, which separates nothing")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)


def give_up_for(account: Account) -> None:
    """Take the account's groups and give up gaining any right by running a program, for good."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Keep processes of the same user from reading this one's memory, environment and descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def check_usable(directory: str, account: Account) -> None:
    """Raise `ConfigError` where the account cannot work in a directory.

    The CLI is in it by the time it becomes the account, so nothing else would tell.
    """
    command = ("/bin/sh", "-c", 'cd -- "$1" && test -r .', "sh", directory)
    tried = subprocess.run(
        command,
        user=account.uid,
        group=account.gid,
        extra_groups=account.groups,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        check=False,
    )
    if tried.returncode != 0:
        raise ConfigError(f"AGENT_CWD={directory[:80]!r}: {account.name} cannot enter and read it")


def bundled_cli() -> Path:
    """Return the path of the CLI in the SDK's package; raise `PackageNotFoundError` if the SDK is not installed."""
    # Importing the SDK for its path takes half a second.
    return Path(str(metadata.distribution("claude-agent-sdk").locate_file("claude_agent_sdk/_bundled/claude")))


def cli_binary(configured: str | None) -> Path | None:
    """Return the path of the CLI that the SDK starts, found as the SDK finds it; None if there is no such file."""
    path = configured or (str(bundled_cli()) if bundled_cli().is_file() else shutil.which("claude"))
    return Path(path) if path and Path(path).is_file() else None


def may_read(path: Path, account: Account) -> bool:
    """Whether an account may read a file, by its owner, group and mode."""
    status = path.stat()
    if status.st_uid == account.uid:
        return True  # its owner can change the mode
    bit = stat.S_IRGRP if status.st_gid in (account.gid, *account.groups) else stat.S_IROTH
    return bool(status.st_mode & bit)
