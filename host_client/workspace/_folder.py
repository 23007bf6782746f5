"""The folder that a session works in: sent to its sandbox, or used in place, with the changes since it began."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from host_client.errors import ConfigurationError, SandboxError, SandspanError
from host_client.sandbox import FolderSandbox, Sandbox

from ._baseline import Baseline, read_baseline
from ._changes import Changes
from ._collected import HEAD_BYTES
from ._patching import changes_since

MAX_BYTES = 64 * 1024 * 1024
MAX_FILES = 50_000

LAST_SECONDS = 120.0
"""Maximum number of seconds that the end of a session waits for the changes of its folder."""

_RECEIVE_BYTES = 1024
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """A folder of this machine for an agent to work in, and how much of it may go into a sandbox and come back."""

    path: Path | str
    max_bytes: int = MAX_BYTES
    max_files: int = MAX_FILES

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir():
            raise ConfigurationError(f"cwd {self.path} is not a directory on this machine: name one that exists")
        if self.max_bytes <= 0 or self.max_files <= 0:
            raise ConfigurationError("max_bytes and max_files of a Workspace take a number above 0")


@dataclass(frozen=True)
class SentFolder:
    """Facts of a folder that was sent to a sandbox. ``files`` and ``size``, in bytes, count what was sent."""

    path: Path
    files: int
    size: int
    is_in_git: bool
    """Whether git's rules were the folder's own; else `.env` and caches of tools stayed at home too."""
    duration_ms: float


class SessionFolder:
    """The folder of one session. `begin`, `send` and `close` are called once, in this order."""

    def __init__(self, cwd: Workspace | Path | str) -> None:
        self._workspace = cwd if isinstance(cwd, Workspace) else Workspace(cwd)
        self._path = Path(self._workspace.path).resolve()
        self._base: Baseline | None = None
        self._in_place = False
        self._fault: SandspanError | None = None
        """Why there are no changes to be had."""
        self._last: Changes | None = None
        self._lock = asyncio.Lock()

    @property
    def last(self) -> Changes | None:
        """Return the changes at the end of the session; None before it, and if there are none to be had."""
        return self._last

    async def begin(self, sandbox: Sandbox) -> None:
        """Read the folder's state before the sandbox is created; raise `ConfigurationError` if it cannot be sent."""
        self._in_place = _able(sandbox).work_in(self._path)
        try:
            _refuse_whole_disk(self._path)
            limits = (self._workspace.max_files, self._workspace.max_bytes)
            self._base = await asyncio.to_thread(read_baseline, self._path, *limits, pack=not self._in_place)
        except ConfigurationError as error:
            if not self._in_place:
                raise
            self._fault = error  # the agent can work in it all the same

    async def send(self, sandbox: Sandbox) -> SentFolder | None:
        """Send the folder to the sandbox; return None if the agent works in the folder itself."""
        if self._in_place or self._base is None:
            return None
        began, base = time.monotonic(), self._base
        head = json.dumps({"patterns": _texts(base.patterns)}).encode()
        await _able(sandbox).execute(_program("receive"), b"%s\n%s" % (head, base.archive), _RECEIVE_BYTES)
        base.archive = b""
        milliseconds = round((time.monotonic() - began) * 1000, 3)
        return SentFolder(self._path, len(base.digests), base.size, base.is_in_git, milliseconds)

    async def changes(self, sandbox: Sandbox) -> Changes:
        """Return the changes since the session began, or at its end if it has ended. Raise `SandspanError`."""
        async with self._lock:
            if self._last is not None:
                return self._last
            if self._base is None:
                raise self._fault or SandboxError("the session ended before its agent began: there are no changes")
            return await self._collect(sandbox, self._base)

    async def close(self, sandbox: Sandbox, *, is_created: bool) -> None:
        """Keep the changes so far, as the sandbox is about to be removed, and forget the folder's first state."""
        async with self._lock:
            base, self._base = self._base, None
            if base is None:
                return
            try:
                if is_created:
                    async with asyncio.timeout(LAST_SECONDS):
                        self._last = await self._collect(sandbox, base)
            except asyncio.CancelledError:
                self._fault = SandboxError("the end was interrupted, so the changes are not known")
                raise
            except TimeoutError:
                self._fault = SandboxError(f"they did not come within {LAST_SECONDS:.0f} seconds")
            except SandspanError as error:
                self._fault = error
            except Exception as error:  # the sandbox must be removed all the same
                self._fault = SandboxError(f"an internal error: {error!r}")
            finally:
                await asyncio.to_thread(base.close)
            if self._fault is not None:
                _logger.warning("the changes of %s are not known: %s", self._path, self._fault)

    async def _collect(self, sandbox: Sandbox, base: Baseline) -> Changes:
        limits = (self._workspace.max_files, self._workspace.max_bytes)
        request = {
            "base": {path.decode("latin-1"): known for path, known in base.digests.items()},
            "folders": _texts(base.folders),
            "patterns": _texts(base.patterns),
            "max_files": limits[0],
            "max_bytes": limits[1],
        }
        data = json.dumps(request).encode() + b"\n"
        answer = await _able(sandbox).execute(_program("collect"), data, HEAD_BYTES + self._workspace.max_bytes)
        return await asyncio.to_thread(changes_since, base, answer, *limits, in_place=self._in_place)


def _able(sandbox: Sandbox) -> FolderSandbox:
    if not isinstance(sandbox, FolderSandbox):
        raise ConfigurationError(f"a {type(sandbox).__name__} takes no cwd: it lacks the methods of FolderSandbox")
    return sandbox


def _refuse_whole_disk(path: Path) -> None:
    if Path.home().resolve().is_relative_to(path):
        raise ConfigurationError(f"cwd {path} is or holds your home directory: name the folder of a project")


def _texts(paths: list[bytes]) -> list[str]:
    return [path.decode("latin-1") for path in paths]


def _program(task: str) -> str:
    source = importlib.resources.files("host_client.workspace").joinpath("_program.py").read_text()
    return f"{source}\nmain({task!r})\n"
