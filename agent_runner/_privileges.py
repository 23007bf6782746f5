"""Find the account of the CLI and its tools, and give up the privileges that they must not inherit. Linux only.

The Claude Agent SDK starts the CLI with another user id only: the CLI would keep root's groups and could become root
through a setuid program. So this process changes its groups and gives up setuid programs, which its children inherit.
It remains root, so its children cannot signal, trace or read it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ._config import ConfigError
from .contract.prctl import SET_DUMPABLE, SET_NO_NEW_PRIVS, prctl


class Account(NamedTuple):
    """A user account of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that a login sets; empty ones replace directories of root."""
        names = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {**names, "TMPDIR": "", "XDG_RUNTIME_DIR": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}

    def search_path(self, inherited: str) -> str:
        """Return PATH with the directories of local programs in front, if root's PATH lacks them."""
        own = (f"{self.home}/.local/bin", "/usr/local/bin")
        given = inherited.split(os.pathsep)
        return os.pathsep.join([*(folder for folder in own if folder not in given), *given])


def find_account(name: str) -> Account:
    """Return the account that AGENT_USER names; raise `ConfigError` if it is unknown or root, or this is not root."""
    if os.geteuid() != 0:
        raise ConfigError(f"AGENT_USER={name!r}: the runner must be root to start the CLI as another account")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"AGENT_USER={name!r}: there is no such account") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"AGENT_USER={name!r}: is root itself: name an account without root's rights")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)


def drop_privileges(account: Account) -> None:
    """Take the account's groups, and give up for good the rights that setuid programs grant."""
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    prctl(SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Prevent processes of the same account from reading this one's memory, environment and descriptors."""
    prctl(SET_DUMPABLE, 0)


def check_usable(directory: str, account: Account) -> None:
    """Raise `ConfigError` if the account cannot enter and read the agent's working directory.

    The CLI enters it before it becomes the account, so it does not fail by itself.
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
    import claude_agent_sdk  # imported by the run already

    bundled = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    path = configured or (str(bundled) if bundled.is_file() else shutil.which("claude"))
    return Path(path) if path and Path(path).is_file() else None


def may_read(path: Path, account: Account) -> bool:
    """Return whether an account may read a file, by the file's owner, group and mode."""
    status = path.stat()
    if status.st_uid == account.uid:
        return True  # the owner can change the mode
    bit = stat.S_IRGRP if status.st_gid in (account.gid, *account.groups) else stat.S_IROTH
    return bool(status.st_mode & bit)
