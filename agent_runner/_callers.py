"""Find the process at the other end of a local TCP connection, and the tool call that started it. Linux only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .contract.processes import descendants, parent_of

_TRACEPARENT = re.compile(rb"(?:^|\0)TRACEPARENT=[0-9a-f]{2}-[0-9a-f]{32}-([0-9a-f]{16})-")
_QUOTES = re.compile(r"[\\'\"\s]+")
_MAX_COMMAND = 64 * 1024
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")  # in the second are connections to ::ffff:127.0.0.1


class Caller(NamedTuple):
    """A process that is a descendant of this one."""

    span_id: bytes | None
    """The id in the TRACEPARENT that the process was started with."""
    command_lines: tuple[str, ...] = ()
    """The comparable command lines of the process and of its ancestors below the CLI."""

    def runs(self, command: str) -> bool:
        """Return whether a comparable command is part of the command lines."""
        return bool(command) and any(command in line for line in self.command_lines)


def comparable(command: str) -> str:
    """Return a command, or a command line with it, without quotes and white space, which a shell may change."""
    return _QUOTES.sub("", command[:_MAX_COMMAND])


def find_caller(port: int, server_port: int) -> Caller | None:
    """Return the descendant of this process that is connected from ``port`` to ``server_port``, or None.

    It reads hundreds of files below /proc, some of which another account's process may refuse.
    """
    inode = _inode(port, server_port)
    if inode is None:
        return None
    for pid in descendants(os.getpid()):
        if inode in _sockets(pid):
            return Caller(_span_id(pid), tuple(_command_lines(pid)))
    return None


def _inode(port: int, server_port: int) -> str | None:
    """Return the inode of the socket that is connected from one local port to another."""
    ours, theirs = f":{server_port:04X}", f":{port:04X}"
    for table in _TABLES:
        for line in _lines(table):
            fields = line.split()
            if fields[1].endswith(theirs) and fields[2].endswith(ours):
                return fields[9]
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()[1:]
    except OSError:
        return []


def _sockets(pid: int) -> set[str]:
    """Return the inodes of a process's sockets; none if they may not be read."""
    found: set[str] = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(target[len("socket:[") : -1])
    except OSError:
        pass
    return found


def _span_id(pid: int) -> bytes | None:
    try:
        found = _TRACEPARENT.search(Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:
        return None
    return bytes.fromhex(found[1].decode()) if found else None


def _command_lines(pid: int) -> Iterator[str]:
    """Yield the command lines of a process and its ancestors, but for the CLI, which is a child of this process."""
    while (parent := parent_of(pid)) not in (None, os.getpid()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return
        yield comparable(line[:_MAX_COMMAND].replace(b"\0", b" ").decode(errors="replace"))
        pid = parent or 0
