"""Reads the state of a folder when a session begins, and makes a patch of what changed since.

Contents are kept in a temporary repository beside the folder; the folder's own repository is not touched.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from host_client.errors import ConfigurationError, SandboxError

from . import _program as program
from ._collected import Collected, read_collected
from ._rules import ignored_on_host, patterns_of
from .changes import Changes, FileChange

_STATES = {"A": "added", "M": "modified", "T": "modified", "D": "deleted", "R": "renamed"}
_PLAIN = ("-c", "core.compression=0", "-c", "fastimport.unpackLimit=0")
_FAST_IMPORT = ("git", *_PLAIN, "fast-import", "--quiet", "--force")
_DIFF = ("git", "diff-tree", "-r", "-M", "--no-ext-diff", "--no-textconv")


@dataclass
class Baseline:
    """The state of a folder: the digest of each file, and its contents in a temporary repository."""

    root: bytes
    digests: dict[bytes, str] = field(default_factory=dict[bytes, str])
    folders: list[bytes] = field(default_factory=list[bytes])
    patterns: list[bytes] = field(default_factory=list[bytes])
    size: int = 0
    archive: bytes = b""
    """The folder as a compressed tar archive, if it is to be sent."""

    def __post_init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="sandspan-base-")
        self._env = {**program.bare_environment(), "GIT_DIR": self._directory.name}
        program.run(["git", "init", "-q", "--bare", "--template="], os.fsencode(self._directory.name), self._env)

    def close(self) -> None:
        """Remove the temporary repository."""
        self._directory.cleanup()

    def write(self, commit: str, commands: Iterator[bytes], parent: str | None = None) -> None:
        """Write a commit of the commands of ``git fast-import``."""
        with subprocess.Popen(_FAST_IMPORT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=self._env) as importing:
            assert importing.stdin is not None
            assert importing.stderr is not None
            try:
                importing.stdin.write(f"commit refs/{commit}\ncommitter sandspan <> 0 +0000\ndata 0\n".encode())
                # A commit without a parent begins with no files, also where the reference has an older one.
                importing.stdin.write(f"from refs/{parent}^0\n".encode() if parent else b"deleteall\n")
                for command in commands:
                    importing.stdin.write(command)
                importing.stdin.close()
            except BrokenPipeError:
                pass  # git says why on stderr
            words = importing.stderr.read().decode("utf-8", "replace").strip()
        if importing.returncode != 0:
            raise OSError(0, f"git fast-import: {words[-300:]}")

    def diff(self, *options: str) -> bytes:
        """Return the output of ``git diff-tree`` for both commits."""
        where = os.fsencode(self._directory.name)
        return program.run([*_DIFF, *options, "refs/base", "refs/work"], where, self._env)


def read_baseline(path: Path, max_files: int, max_bytes: int, *, pack: bool) -> Baseline:
    """Read the state of a folder, and ``pack`` it. Raise `ConfigurationError` for one that is too large or unreadable.

    The same bytes are packed and kept, also if a file changes meanwhile.
    """
    root = os.fsencode(path)
    try:
        listing = program.list_folder(root, lambda folder: ignored_on_host(root, folder), max_files)
        unreadable = [os.fsdecode(path) for path, _ in listing.left_out if path.endswith(b"/")]
        if unreadable and pack:
            raise ConfigurationError(f"cwd {path}: {unreadable[0]} cannot be read: name it in .gitignore")
        _check_size(path, listing, max_files, max_bytes)
        base = Baseline(root, folders=listing.folders, patterns=patterns_of(path))
        packed = io.BytesIO()
        try:
            base.write("base", _reading(base, listing, packed if pack else None, max_bytes))
        except BaseException:
            base.close()
            raise
        base.archive = packed.getvalue()
    except FileNotFoundError as error:
        if error.filename != "git":
            raise ConfigurationError(f"cwd {path}: {error.filename!r}: {error.strerror}") from error
        raise ConfigurationError(f"cwd {path}: git is missing on this machine: install it") from error
    except OSError as error:
        about = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        raise ConfigurationError(f"cwd {path}: {about}{error.strerror}") from error
    return base


def _check_size(path: Path, listing: program.Listing, max_files: int, max_bytes: int) -> None:
    size, count = sum(entry.size for entry in listing.files), len(listing.files)
    if count > max_files:
        has = f"more than {max_files:,} files"
    elif size > max_bytes:
        has = f"{size:,} bytes in {count:,} files"
    else:
        return
    raise ConfigurationError(
        f"cwd {path} has {has}, at most {max_bytes:,} bytes in {max_files:,} files are taken: name a smaller folder,"
        " put what the agent does not need into .gitignore, or raise the limits, as in"
        " Workspace(path, max_bytes=…, max_files=…) or --cwd-mib"
    )


def _reading(base: Baseline, listing: program.Listing, packed: io.BytesIO | None, max_bytes: int) -> Iterator[bytes]:
    """Read each file of a listing, note its digest, add it to the archive, and yield its command for fast-import."""
    with (
        gzip.GzipFile(fileobj=packed or io.BytesIO(), mode="wb", compresslevel=1) as compressed,
        tarfile.open(
            None, "w", compressed, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar,
    ):
        for folder in listing.folders if packed else ():
            member = tarfile.TarInfo(os.fsdecode(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for entry in listing.files:
            content = program.read(base.root, entry, max_bytes - base.size)
            base.size += len(content)
            if base.size > max_bytes:
                raise OSError(0, f"a file grew while it was read: {os.fsdecode(entry.path)}")
            base.digests[entry.path] = program.digest(entry.mode, content)
            if packed:
                _pack(tar, base.root, entry, content)
            yield _file_command(entry.path, entry.mode, content)


def _pack(tar: tarfile.TarFile, root: bytes, entry: program.Entry, content: bytes) -> None:
    member = tarfile.TarInfo(os.fsdecode(entry.path))
    member.mtime = int(os.lstat(os.path.join(root, entry.path)).st_mtime)
    if entry.mode == program.LINK:
        member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(content)
        tar.addfile(member)
        return
    member.mode, member.size = entry.mode & 0o777, len(content)
    tar.addfile(member, io.BytesIO(content))


def changes_since(base: Baseline, answer: bytes, max_files: int, max_bytes: int, *, in_place: bool) -> Changes:
    """Make a patch of what `_program.collect` wrote, which is not trusted. Raise `SandboxError` if it is not valid."""
    collected = read_collected(answer, base.digests, max_files, max_bytes)
    try:
        base.write("work", _commands(collected), parent="base")
        patch = base.diff("-p", "--binary", "--full-index", "--no-color")
        files = tuple(_files(base.diff("-z", "--name-status").split(b"\0")))
    except OSError as error:
        raise SandboxError(f"the changes cannot be made into a patch: {error.strerror}") from error
    touched = (*collected.deleted, *(path for path, _, _ in collected.changed))
    return Changes(
        folder=Path(os.fsdecode(base.root)),
        patch=patch,
        files=files,
        folders=tuple(map(os.fsdecode, collected.folders)),
        left_out=collected.left_out,
        in_place=in_place,
        before={path: base.digests.get(path) for path in touched},
    )


def _commands(collected: Collected) -> Iterator[bytes]:
    for path in collected.deleted:
        yield b"D %s\n" % _quoted(path)
    for path, mode, content in collected.changed:
        yield _file_command(path, mode, content)


def _file_command(path: bytes, mode: int, content: bytes) -> bytes:
    return b"M %o inline %s\ndata %d\n%s\n" % (mode, _quoted(path), len(content), content)


def _quoted(path: bytes) -> bytes:
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._- "
    return b'"' + b"".join(b"%c" % byte if byte in plain else b"\\%03o" % byte for byte in path) + b'"'


def _files(fields: list[bytes]) -> Iterator[FileChange]:
    """Read the output of ``git diff-tree -z --name-status``."""
    rest = iter(fields)
    for state in rest:
        if state:
            old = os.fsdecode(next(rest))
            new = os.fsdecode(next(rest)) if state.startswith(b"R") else None
            yield FileChange(new or old, _STATES[state[:1].decode()], old if new else None)
