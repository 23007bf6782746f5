"""The sandboxes of ours that E2B has: to list them, to find a session's, to remove what a killed host left."""

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
    """Return this process, as it is noted on a sandbox: a later `Listed.is_abandoned` asks whether it lives."""
    return {"sandspan.host": _host(), "sandspan.pid": str(os.getpid())}


def _host() -> str:
    """Return this machine, and on Linux which boot and which container of it: where a pid means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Listed:
    """One sandbox; ``session_id``, ``user_id``, ``traceparent`` and ``prompt`` are what its host noted on it."""

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
    """``pause`` where a killed host leaves a session that can be resumed."""
    keys: str

    def is_abandoned(self, now: datetime) -> bool:
        """Whether its host is gone: the process, or, seen from elsewhere, its renewals at a third of the timeout.

        One that is to be kept is not: E2B pauses it, and it can be resumed, from then on by another host.
        """
        if self.state != "running" or self.keep:
            return False
        if self.host == _host():
            return not _lives(self.pid)
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
    """Return ours, running and paused, with this metadata; raise `SandboxError`."""
    found: list[Listed] = []
    with Translated():
        pages = AsyncSandbox.list(SandboxQuery(metadata={**_MARK, **metadata}), **api_params(environ))
        while pages.has_next:
            found.extend(_listed(info) for info in await pages.next_items())
    return found


async def find_session(environ: Mapping[str, str], session_id: str) -> Listed:
    """Return the sandbox of a session; raise `ConfigurationError` where there is none."""
    # Asked again here: what E2B makes of a strange value is not ours to know.
    found = [each for each in await sandboxes(environ, {"session.id": session_id}) if each.session_id == session_id]
    if not found or not session_id:
        raise ConfigurationError(
            f"no sandbox has session {session_id}: `host_client sandboxes list` shows those that can be resumed"
        )
    return found[0]


async def remove_session(environ: Mapping[str, str], session_id: str) -> int:
    """Remove every sandbox of a session; return how many. Raise `SandboxError` where one may be left."""
    found = [
        each.sandbox_id
        for each in await sandboxes(environ, {"session.id": session_id})
        if each.session_id == session_id
    ]
    if failed := await remove(environ, found):
        raise SandboxError(f"sandboxes of session {session_id} may be left behind: {failed}")
    return len(found)


async def remove(environ: Mapping[str, str], ids: Iterable[str]) -> dict[str, str]:
    """Remove sandboxes; return what failed, by id. One that is gone already is no failure."""

    async def one(sandbox_id: str) -> tuple[str, str]:
        try:
            await AsyncSandbox.kill(sandbox_id, **api_params(environ))
        except Exception as error:  # each for itself: the others are removed all the same
            return sandbox_id, str(failure_of(error))
        return sandbox_id, ""

    outcomes = await asyncio.gather(*(one(sandbox_id) for sandbox_id in ids))
    return {sandbox_id: why for sandbox_id, why in outcomes if why}
