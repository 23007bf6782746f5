"""Files into and out of an E2B sandbox, each way as one tar archive.

What comes out was made by the agent, so nothing in it is believed: sizes are counted while they come,
and what would leave the target folder, or is no plain file, folder or inner link, is refused.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from e2b import CommandExitException

from host_client.errors import ConfigurationError, SandboxError

from .failures import Translated

if TYPE_CHECKING:
    from e2b import AsyncSandbox

Write = Callable[..., Awaitable[object]]

MAX_BYTES = 1024 * 1024 * 1024
"""Most that is copied either way, in bytes; a download counts what it unpacks to."""

MAX_FILES = 100_000
"""Most files and folders that a download makes."""

_SPOOL_BYTES = 16 * 1024 * 1024
_PACK_SECONDS = 600
_logger = logging.getLogger(__name__)


async def upload(sandbox: AsyncSandbox, source: Path, work: str, user: str) -> None:
    """Copy a file, or a folder's contents, into ``work``, owned by ``user``; symbolic links stay links."""
    archive = f"/tmp/.sandspan-upload-{sandbox.sandbox_id}.tar"  # noqa: S108 - in the sandbox, not here
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as packed:
        await asyncio.to_thread(_pack, source, packed)
        write = cast("Write", sandbox.files.write)  # pyright: ignore[reportUnknownMemberType] - its IO has no parameter
        with Translated():
            await write(archive, packed, user=user, request_timeout=_PACK_SECONDS)
    unpack = f"tar -xf {archive} -C {shlex.quote(work)} --no-same-owner; code=$?; rm -f {archive}; exit $code"
    await _run(
        sandbox, unpack, user, f"cannot unpack {source} in the sandbox, whose template may not be one of Sandspan's"
    )


def _pack(source: Path, into: IO[bytes]) -> None:
    try:
        with tarfile.open(fileobj=into, mode="w") as tar:
            for path in sorted(source.iterdir()) if source.is_dir() else (source,):
                tar.add(path, arcname=path.name)
                if into.tell() > MAX_BYTES:
                    raise ConfigurationError(f"{source} is larger than {MAX_BYTES} bytes: upload less")
    except OSError as error:
        raise ConfigurationError(f"cannot read {source}: {error}") from error
    into.seek(0)


async def download(sandbox: AsyncSandbox, work: str, user: str, target: Path) -> None:
    """Copy the contents of ``work`` into a folder here; raise `SandboxError` where it is too much.

    What is refused is logged, and the rest is copied.
    """
    archive = f"/tmp/.sandspan-download-{sandbox.sandbox_id}.tar"  # noqa: S108 - in the sandbox, not here
    # Packed as the agent's account: a link to what it cannot read gives it nothing.
    await _run(sandbox, f"tar -cf {archive} -C {shlex.quote(work)} .", user, "cannot pack the sandbox's files")
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as packed:
        with Translated():
            size = 0
            async for chunk in await sandbox.files.read(archive, format="stream", user=user):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise SandboxError(f"the sandbox's files are larger than {MAX_BYTES} bytes")
                packed.write(chunk)
        packed.seek(0)
        refused = await asyncio.to_thread(unpack, packed, target)
    if refused:
        _logger.warning("%d entries from the sandbox were refused: %s", len(refused), "; ".join(refused[:5]))


def unpack(packed: IO[bytes], target: Path) -> list[str]:
    """Unpack an archive nobody vouches for; return what was refused and why. Raise `SandboxError`."""
    refused: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in _within_limits(tar):
                try:
                    # The filter refuses absolute paths, `..`, links that lead out, and devices.
                    tar.extract(member, target, filter="data")
                except tarfile.FilterError as error:
                    refused.append(str(error)[:200])
    except tarfile.TarError as error:
        raise SandboxError(f"what the sandbox sent is no archive: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write to {target}: {error}") from error
    return refused


def _within_limits(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(tar, 1):
        size += member.size
        if count > MAX_FILES or size > MAX_BYTES:
            raise SandboxError(f"the sandbox's files are more than {MAX_FILES} or larger than {MAX_BYTES} bytes")
        yield member


async def _run(sandbox: AsyncSandbox, command: str, user: str, failed: str) -> None:
    with Translated():
        try:
            await sandbox.commands.run(command, user=user, timeout=_PACK_SECONDS)
        except CommandExitException as error:
            raise SandboxError(f"{failed}: {error.stderr.strip()[-300:]}") from error
