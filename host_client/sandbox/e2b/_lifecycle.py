"""Creates, connects to, pauses and removes sandboxes, with retries: E2B's answer may be lost although it acted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from e2b import AsyncSandbox, CommandExitException, SandboxException, SandboxNotFoundException

from agent_runner.contract.protocol import ErrorType
from host_client.errors import SandboxError, SandboxGoneError, SandboxStartError, StreamLostError
from host_client.sandbox.base import TEMPORARY

from ._failures import NO_TEMPLATE, Translated
from .inventory import remove, sandboxes

if TYPE_CHECKING:
    from e2b import ApiParams

T = TypeVar("T")

PAUSES = (0.2, 1.0, 4.0)
"""Seconds between attempts; there is one attempt more than pauses."""

_ANSWER_LOST: tuple[ErrorType, ...] = ("network", "timeout")
"""Error types after which the request may have been carried out, as only the answer was lost."""

_REQUEST_SECONDS = 10.0
_LEAVE_SECONDS = 10.0
_logger = logging.getLogger(__name__)


async def create(request: Mapping[str, Any], run_id: str, environ: Mapping[str, str]) -> AsyncSandbox:
    """Create one sandbox, even if the request is repeated; ``request`` is passed to the SDK. Raise `SandboxError`."""
    try:
        return await _with_retries(lambda: _create(request, run_id), _ANSWER_LOST)
    except StreamLostError as error:
        if not isinstance(error.__cause__, httpx.ConnectError):  # in that case nothing was sent
            await _remove_unknown(run_id, environ)
        raise


async def _create(request: Mapping[str, Any], run_id: str) -> AsyncSandbox:
    with Translated():
        try:
            # E2B creates one sandbox for requests with the same key.
            return await AsyncSandbox.create(**request, idempotency_key=run_id)
        except SandboxException as error:
            if error.status_code != 404:
                raise
            raise SandboxStartError(f"{NO_TEMPLATE} ({error})", "invalid_request") from error


async def connect_to(sandbox_id: str, timeout: int, connection: ApiParams) -> AsyncSandbox:
    """Connect to a sandbox, which resumes it if it is paused; raise `SandboxGoneError` or another `SandboxError`."""

    async def connect() -> AsyncSandbox:
        with Translated():
            return await AsyncSandbox.connect(sandbox_id, timeout=timeout, **connection)

    return await _with_retries(connect, TEMPORARY)


async def _remove_unknown(run_id: str, environ: Mapping[str, str]) -> None:
    """Remove the sandboxes of a run whose creation may have succeeded although no answer came."""
    try:
        found = [each.sandbox_id for each in await sandboxes(environ, {"sandspan.run_id": run_id})]
        failed = await remove(environ, found)
    except SandboxError as error:
        failed = {"": str(error)}
    if failed:
        _logger.warning("a sandbox may have been left behind; `host_client sandboxes list` shows it: %s", failed)


async def remove_one(sandbox: AsyncSandbox) -> None:
    """Remove a sandbox; if it no longer exists, that is no error. Raise `SandboxError` if it may still exist."""

    async def kill() -> None:
        with Translated():
            await sandbox.kill(request_timeout=_REQUEST_SECONDS)

    await _with_retries(kill, TEMPORARY)


async def pause(sandbox: AsyncSandbox) -> None:
    """Pause a sandbox; raise `SandboxGoneError` if it no longer exists, `SandboxError` if it may still run."""

    async def ask() -> None:
        with Translated():
            try:
                await sandbox.pause()
            except SandboxNotFoundException as error:
                message = f"sandbox {sandbox.sandbox_id} ended before it could be paused"
                raise SandboxGoneError(message) from error

    await _with_retries(ask, TEMPORARY)


async def end_processes(sandbox: AsyncSandbox) -> None:
    """End all processes in a resumed sandbox, such as a runner that was paused with it."""
    with Translated():
        for process in await sandbox.commands.list():
            try:
                await sandbox.commands.run(f"kill -TERM {process.pid}", user="root")
            except CommandExitException:
                continue  # the process has ended
        until = asyncio.get_running_loop().time() + _LEAVE_SECONDS
        while left := await sandbox.commands.list():
            if asyncio.get_running_loop().time() > until:
                for process in left:
                    await sandbox.commands.kill(process.pid)
            await asyncio.sleep(0.1)


async def _with_retries(ask: Callable[[], Awaitable[T]], again: tuple[ErrorType, ...]) -> T:
    """Await a request; repeat it after errors of the types in ``again``."""
    for pause in PAUSES:
        try:
            return await ask()
        except SandboxError as error:
            if isinstance(error, SandboxGoneError) or error.error_type not in again:
                raise
            _logger.info("a request to E2B is repeated in %s s: %s", pause, error)
        await asyncio.sleep(pause)
    return await ask()
