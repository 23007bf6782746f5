"""Copies files into and out of an E2B sandbox, each way as one tar archive.

The archive that comes out was made by the agent and is not trusted: sizes are counted while it is read, and entries
that lead out of the target folder, or are no plain file, folder or link within it, are refused.
"""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import shlex
import tarfile
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from e2b import CommandExitException

from host_client.errors import ConfigurationError, FileMissingError, FileRefusedError, FileTooLargeError, SandboxError
from host_client.sandbox.base import inner_path

from ._failures import Translated
from ._layout import Layout

if TYPE_CHECKING:
    from e2b import AsyncSandbox

Write = Callable[..., Awaitable[object]]

MAX_BYTES = 1024 * 1024 * 1024
"""Maximum number of bytes that are copied either way; of a download, the unpacked bytes count."""

MAX_FILES = 100_000
"""Maximum number of files and folders in one copy."""

_SPOOL_BYTES = 16 * 1024 * 1024
_PACK_SECONDS = 600
_logger = logging.getLogger(__name__)


async def upload(sandbox: AsyncSandbox, source: Path, layout: Layout) -> None:
    """Copy a file, or a folder's contents, into the working directory; symbolic links stay links."""
    archive = f"{layout.state}/upload.tar"
    write = cast("Write", sandbox.files.write)  # pyright: ignore[reportUnknownMemberType] - its IO has no parameter
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as packed:
        await asyncio.to_thread(_pack, source, packed)
        with Translated():
            await write(archive, packed, user="root", request_timeout=_PACK_SECONDS)
    command = f"{_as_agent(layout)} /bin/tar -xf - -C {shlex.quote(layout.work)} --no-same-owner < {archive}"
    failed = f"cannot unpack {source} in the sandbox (is its template one of Sandspan's?):"
    await _run(sandbox, f"{command}; code=$?; /bin/rm -f {archive}; exit $code", failed)


def _as_agent(layout: Layout) -> str:
    """Return the start of a command line that runs the rest as the agent's account, without a login shell.

    A login shell would first run that account's own files, which the agent may have changed.
    """
    user = f"u={shlex.quote(layout.user)}"
    ids = '--reuid "$u" --regid "$(/usr/bin/id -g "$u")" --init-groups'
    return f"{user}; /usr/bin/setpriv {ids} --no-new-privs --reset-env"


def _pack(source: Path, into: IO[bytes]) -> None:
    limits = _Limits(ConfigurationError(f"{source} has more than {MAX_FILES} files or {MAX_BYTES} bytes: upload less"))

    def counted(member: tarfile.TarInfo) -> tarfile.TarInfo:
        limits.count(member)
        return member

    try:
        with tarfile.open(fileobj=into, mode="w") as tar:
            for path in sorted(source.iterdir()) if source.is_dir() else (source,):
                tar.add(path, arcname=path.name, filter=counted)
    except OSError as error:
        raise ConfigurationError(f"cannot read {source}: {error}") from error
    into.seek(0)


class _Limits:
    """Counts the files and bytes of an archive, and raises the given error when there are too many."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._files = self._size = 0

    def count(self, member: tarfile.TarInfo) -> None:
        self._files += 1
        self._size += member.size
        if self._files > MAX_FILES or self._size > MAX_BYTES:
            raise self._error


async def download(sandbox: AsyncSandbox, layout: Layout, target: Path) -> None:
    """Copy the contents of the working directory into a folder on this host; raise `SandboxError` if they are too big.

    Refused entries are logged, and the others are copied.
    """
    archive = f"{layout.state}/download.tar"
    # Packed as the agent's account, so that a link cannot reach a file that the agent cannot read.
    pack = f"{_as_agent(layout)} /bin/tar -cf - -C {shlex.quote(layout.work)} --ignore-failed-read . > {archive}"
    # Exit code 1: a file changed while it was read.
    await _run(sandbox, f"{pack}; code=$?; [ $code -le 1 ]", "cannot pack the sandbox's files:")
    try:
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as packed:
            too_large = SandboxError(f"the sandbox's files are larger than {MAX_BYTES} bytes")
            await _fetch(sandbox, archive, packed, MAX_BYTES, too_large)
            refused = await asyncio.to_thread(unpack, packed, target)
    finally:
        await _run(sandbox, f"/bin/rm -f {archive}", "cannot remove a temporary file in the sandbox:")
    if refused:
        _logger.warning("%d entries from the sandbox were refused: %s", len(refused), "; ".join(refused[:5]))


async def _fetch(sandbox: AsyncSandbox, path: str, into: IO[bytes], max_bytes: int, too_large: SandboxError) -> None:
    size = 0
    with Translated():
        async for chunk in await sandbox.files.read(path, format="stream", user="root"):
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            into.write(chunk)
    into.seek(0)


_MISSING, _OUTSIDE, _NO_FILE = 81, 82, 83

_COPY = f"""cd "$1" && path=$(/usr/bin/realpath -e -- "$2" 2>/dev/null) || exit {_MISSING}
case "$path" in "$(/usr/bin/realpath .)"/*) ;; *) exit {_OUTSIDE};; esac
[ -f "$path" ] || exit {_NO_FILE}
exec /usr/bin/head -c "$3" -- "$path"
"""
"""Shell script that writes the first $3 bytes of file $2 in the working directory $1 to stdout."""


async def read_file(sandbox: AsyncSandbox, layout: Layout, path: str, max_bytes: int) -> bytes:
    """Return the content of a file of the working directory; raise `FileRefusedError` and `SandboxError`.

    It is read as the agent's account, so that a link cannot reach a file that the agent cannot read.
    """
    refused = {
        _MISSING: FileMissingError(f"the working directory has no file {path!r}"),
        _OUTSIDE: FileRefusedError(f"{path!r} leads out of the working directory"),
        _NO_FILE: FileRefusedError(f"{path!r} is not a regular file"),
    }
    arguments = shlex.join((layout.work, str(inner_path(path)), str(max_bytes + 1)))
    copy = f"{layout.state}/{secrets.token_hex(8)}.file"
    command = f"{_as_agent(layout)} /bin/sh -c {shlex.quote(_COPY)} sh {arguments} > {copy}"
    into = io.BytesIO()
    try:
        with Translated():
            try:
                await sandbox.commands.run(command, user="root")
            except CommandExitException as error:
                cannot = FileRefusedError(f"{path!r} cannot be read: {error.stderr.strip()[-300:]}")
                raise refused.get(error.exit_code, cannot) from error
        too_large = FileTooLargeError(f"{path!r} is larger than {max_bytes} bytes")
        await _fetch(sandbox, copy, into, max_bytes, too_large)
    finally:
        await _run(sandbox, f"/bin/rm -f {copy}", "cannot remove a temporary file in the sandbox:")
    return into.getvalue()


_PYTHON = "/usr/bin/python3"
"""The image's own Python, as the agent's account need not be able to run the runner's."""

_FAILED = "a program failed in the sandbox's working directory:"

_IN_FOLDER = """
[ -d "$1" ] || { echo "the working folder $1 no longer exists" >&2; exit 1; }
cd "$1" && shift && exec "$@"
"""
"""Shell script that runs a command in a folder. The agent's account enters it, as the agent may have replaced it."""


async def execute(sandbox: AsyncSandbox, layout: Layout, program: str, data: bytes, max_bytes: int) -> bytes:
    """Run a Python program as the agent's account in the working directory; return its stdout. Raise `SandboxError`."""
    given, made = (f"{layout.state}/{secrets.token_hex(8)}.{kind}" for kind in ("in", "out"))
    write = cast("Write", sandbox.files.write)  # pyright: ignore[reportUnknownMemberType] - its IO has no parameter
    run = shlex.join((layout.work, _PYTHON, "-I", "-c", program))
    command = f"{_as_agent(layout)} /bin/sh -c {shlex.quote(_IN_FOLDER)} sh {run} < {given}"
    into = io.BytesIO()
    try:
        with Translated():
            await write(given, data, user="root", request_timeout=_PACK_SECONDS)
        await _run(sandbox, f"set -o pipefail; {{ {command}; }} | /usr/bin/head -c {max_bytes + 1} > {made}", _FAILED)
        too_large = SandboxError(f"the sandbox sent more than {max_bytes} bytes")
        await _fetch(sandbox, made, into, max_bytes, too_large)
    finally:
        await _run(sandbox, f"/bin/rm -f {given} {made}", "cannot remove a temporary file in the sandbox:")
    return into.getvalue()


def unpack(packed: IO[bytes], target: Path) -> list[str]:
    """Unpack an untrusted archive into a folder; return the reasons of refused entries. Raise `SandboxError`."""
    if not hasattr(tarfile, "data_filter"):
        raise ConfigurationError("a download needs Python 3.11.4 or later, whose tarfile refuses unsafe entries")
    refused: list[str] = []
    limits = _Limits(SandboxError(f"the sandbox has more than {MAX_FILES} files or {MAX_BYTES} bytes in them"))
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in tar:
                limits.count(member)
                try:
                    # The filter refuses absolute paths, `..`, links that lead out, and devices.
                    tar.extract(member, target, filter="data")
                except tarfile.FilterError as error:
                    refused.append(str(error)[:200])
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: malformed numbers
        raise SandboxError(f"the sandbox sent no valid archive: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write to {target}: {error}") from error
    return refused


async def _run(sandbox: AsyncSandbox, command: str, failed: str) -> None:
    """Run a command line as root in the sandbox; raise `SandboxError` with the text ``failed`` if it fails."""
    with Translated():
        try:
            await sandbox.commands.run(command, user="root", timeout=_PACK_SECONDS)
        except CommandExitException as error:
            raise SandboxError(f"{failed} {error.stderr.strip()[-300:]}") from error
