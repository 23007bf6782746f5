"""Lists, finds and removes the sandboxes in E2B that Sandspan created."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from e2b import AsyncSandbox, SandboxInfo, SandboxQuery

from host_client.errors import ConfigurationError, SandboxError

from ._connection import api_params
from ._failures import Translated, failure_of

_MARK = {"sandspan": "1"}


def owner() -> dict[str, str]:
    """Return metadata that identifies this process; `Listed.is_abandoned` uses it to check whether it still runs."""
    return {"sandspan.host": _host(), "sandspan.pid": str(os.getpid())}


def _host() -> str:
    """Return a text that identifies this machine, and on Linux its boot and container, within which pids are unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Listed:
    """A listed sandbox; the fields from ``session_id`` on are metadata that its host stored when it created it."""

    sandbox_id: str
    state: str
    template: str
    started_at: datetime
    end_at: datetime
    timeout: float
    session_id: str
    user_id: str
    tenant_id: str
    traceparent: str
    prompt: str
    host: str
    pid: str
    keep: str
    """``pause`` if E2B pauses the sandbox when its time is up, so that the session can be resumed; else empty."""
    keys: str

    def is_abandoned(self, now: datetime) -> bool:
        """Return whether the sandbox's host has ended.

        On the same machine the host's process is checked; elsewhere, whether its renewals at a third of the timeout are
        missing. A sandbox that is to be kept is never abandoned, as E2B pauses it and any host can resume it.
        """
        if self.state != "running" or self.keep:
            return False
        if self.host == _host():
            return not _is_running(self.pid)
        return (self.end_at - now).total_seconds() < self.timeout / 3


def _listed(info: SandboxInfo) -> Listed:
    noted = info.metadata
    return Listed(
        sandbox_id=info.sandbox_id,
        state=info.state.value,
        template=info.name or info.template_id,
        started_at=info.started_at,
        end_at=info.end_at,
        timeout=_seconds(noted.get("sandspan.timeout", "")),
        session_id=noted.get("session.id", ""),
        user_id=noted.get("user.id", ""),
        tenant_id=noted.get("tenant.id", ""),
        traceparent=noted.get("traceparent", ""),
        prompt=noted.get("prompt", ""),
        host=noted.get("sandspan.host", ""),
        pid=noted.get("sandspan.pid", ""),
        keep=noted.get("sandspan.keep", ""),
        keys=noted.get("sandspan.keys", ""),
    )


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


async def sandboxes(environ: Mapping[str, str], metadata: Mapping[str, str]) -> list[Listed]:
    """Return Sandspan's sandboxes, running and paused, that have this metadata; raise `SandboxError`."""
    found: list[Listed] = []
    with Translated():
        pages = AsyncSandbox.list(SandboxQuery(metadata={**_MARK, **metadata}), **api_params(environ))
        while pages.has_next:
            found.extend(_listed(info) for info in await pages.next_items())
    return found


async def find_session(environ: Mapping[str, str], session_id: str) -> Listed:
    """Return the sandbox of a session; raise `ConfigurationError` if there is none."""
    # Compared here too, as E2B may interpret special characters of a value.
    found = [each for each in await sandboxes(environ, {"session.id": session_id}) if each.session_id == session_id]
    if not found or not session_id:
        raise ConfigurationError(
            f"no sandbox has session {session_id}: `host_client sandboxes list` shows those that can be resumed"
        )
    return found[0]


async def remove_session(environ: Mapping[str, str], session_id: str) -> int:
    """Remove every sandbox of a session; return their number. Raise `SandboxError` if one may be left."""
    found = [
        each.sandbox_id
        for each in await sandboxes(environ, {"session.id": session_id})
        if each.session_id == session_id
    ]
    if failed := await remove(environ, found):
        raise SandboxError(f"sandboxes of session {session_id} may be left behind: {failed}")
    return len(found)


async def remove(environ: Mapping[str, str], ids: Iterable[str]) -> dict[str, str]:
    """Remove sandboxes; return the error messages by id. A sandbox that no longer exists is no error."""

    async def one(sandbox_id: str) -> tuple[str, str]:
        try:
            await AsyncSandbox.kill(sandbox_id, **api_params(environ))
        except Exception as error:  # one failure must not keep the others from being removed
            return sandbox_id, str(failure_of(error))
        return sandbox_id, ""

    outcomes = await asyncio.gather(*(one(sandbox_id) for sandbox_id in ids))
    return {sandbox_id: why for sandbox_id, why in outcomes if why}
