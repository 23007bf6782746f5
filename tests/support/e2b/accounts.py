"""Accounts of commands: each account of the image is mapped to one of this machine."""

from __future__ import annotations

import base64
import os
import pwd
from pathlib import Path
from typing import NamedTuple

from .connect_protocol import RpcError

DEFAULT_USER = "user"
"""Account of a command whose request names none."""


class Account(NamedTuple):
    """``uid`` and ``gid`` are None where this process cannot change to another account."""

    name: str
    home: Path
    uid: int | None
    gid: int | None

    def own(self, path: Path) -> None:
        """Give a file or directory to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


class Accounts:
    """The accounts of one sandbox; the home of each is a directory of the sandbox's own.

    ``unprivileged`` is the account of this machine that stands for the image's ``user``.
    """

    def __init__(self, homes: Path, unprivileged: str) -> None:
        self._homes, self._unprivileged = homes, unprivileged

    def find(self, name: str) -> Account:
        """Return the account, its home made; an unknown one is refused as envd does."""
        uid = gid = None
        if os.geteuid() == 0:
            uid, gid = self._ids(name)
        elif name not in ("root", "user"):
            self._ids(name)
        account = Account(name, self._homes / name, uid, gid)
        if not account.home.exists():
            account.home.mkdir(parents=True)
            account.own(account.home)
        return account

    def _ids(self, name: str) -> tuple[int, int]:
        try:
            found = pwd.getpwnam(self._unprivileged if name == "user" else name)
        except KeyError:
            raise RpcError("unauthenticated", f"invalid username: '{name}'") from None
        return found.pw_uid, found.pw_gid


def basic_name(authorization: str) -> str:
    """Return the account that a request names, by Basic authentication without a password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return DEFAULT_USER
    return base64.b64decode(value).decode().partition(":")[0] or DEFAULT_USER
