"""Reads the state of a folder when a session begins, and keeps its contents in a temporary file."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from host_client.errors import ConfigurationError

from . import _program as program
from ._rules import ignored_on_host, is_in_repository, patterns_of


@dataclass
class Baseline:
    """The state of a folder: the digest of each file, and the contents."""

    root: bytes
    digests: dict[bytes, str] = field(default_factory=dict[bytes, str])
    folders: list[bytes] = field(default_factory=list[bytes])
    patterns: list[bytes] = field(default_factory=list[bytes])
    is_in_git: bool = False
    size: int = 0
    archive: bytes = b""
    """The folder as a compressed tar archive, if it is to be sent."""

    def __post_init__(self) -> None:
        self._contents = tempfile.TemporaryFile(prefix="sandspan-base-")  # noqa: SIM115 - `close` closes it
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self.changed_at: dict[bytes, int] = {}

    def add(self, entry: program.Entry, content: bytes, changed_at: int) -> None:
        """Add a file, which was changed at a time in seconds since the epoch."""
        self.changed_at[entry.path] = changed_at
        self._places[entry.path] = (entry.mode, self.size, len(content))
        self._contents.write(content)
        self.size += len(content)
        self.digests[entry.path] = program.digest(entry.mode, content)

    def file(self, path: bytes) -> tuple[int, bytes]:
        """Return the mode and the content of a file."""
        mode, at, size = self._places[path]
        self._contents.seek(at)
        return mode, self._contents.read(size)

    def close(self) -> None:
        """Remove the contents."""
        self._contents.close()


def read_baseline(path: Path, max_files: int, max_bytes: int, *, pack: bool) -> Baseline:
    """Read the state of a folder, and ``pack`` it. Raise `ConfigurationError` for one that is too large or unreadable.

    The same bytes are packed and kept, also if a file changes meanwhile.
    """
    try:
        return _read_baseline(path, max_files, max_bytes, pack=pack)
    except OSError as error:
        raise ConfigurationError(f"cwd {path}: {_words(error)}") from error


def _words(error: OSError) -> str:
    if error.filename == "git":
        return "git is missing on this machine: install it"
    if isinstance(error, ChildProcessError):
        advice = "repair its repository or remove the .git, or name a folder that is not in a .git"
        return f"git cannot read its repository ({error.strerror}): {advice}"
    if error.filename is None:
        return error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}: name it in .gitignore, or make it readable"


def _read_baseline(path: Path, max_files: int, max_bytes: int, *, pack: bool) -> Baseline:
    root = os.fsencode(path)
    listing = program.list_folder(root, lambda folder: ignored_on_host(root, folder), max_files)
    for unreadable, reason in listing.left_out:
        if pack and unreadable.endswith(b"/"):  # a pipe or socket is nothing that an agent needs
            raise OSError(0, reason, unreadable)
    _check_size(path, listing, max_files, max_bytes)
    is_in_git = is_in_repository(path)
    base = Baseline(root, folders=listing.folders, patterns=patterns_of(path), is_in_git=is_in_git)
    try:
        for entry in listing.files:
            _read(base, entry, max_bytes)
        if pack:
            base.archive = _packed(base)
    except BaseException:
        base.close()
        raise
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


def _read(base: Baseline, entry: program.Entry, max_bytes: int) -> None:
    try:
        content = program.read(base.root, entry, max_bytes - base.size)
        changed_at = int(os.lstat(os.path.join(base.root, entry.path)).st_mtime)
    except FileNotFoundError:  # it was removed since it was listed
        return
    if base.size + len(content) > max_bytes:
        raise OSError(0, f"a file grew while it was read: {os.fsdecode(entry.path)}")
    base.add(entry, content, changed_at)


def _packed(base: Baseline) -> bytes:
    """Return the folder as a compressed tar archive."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as compressed,
        tarfile.open(
            None, "w", compressed, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar,
    ):
        for folder in base.folders:
            member = tarfile.TarInfo(os.fsdecode(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for path in base.digests:
            _pack(tar, base, path)
    return packed.getvalue()


def _pack(tar: tarfile.TarFile, base: Baseline, path: bytes) -> None:
    mode, content = base.file(path)
    member = tarfile.TarInfo(os.fsdecode(path))
    member.mtime = base.changed_at[path]
    if mode == program.LINK:
        member.type, member.linkname = tarfile.SYMTYPE, os.fsdecode(content)
        tar.addfile(member)
        return
    member.mode, member.size = mode & 0o777, len(content)
    tar.addfile(member, io.BytesIO(content))
