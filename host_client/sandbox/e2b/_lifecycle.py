"""A sandbox's beginning and end, made sure of: E2B may do what is asked and its answer be lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from e2b import AsyncSandbox, CommandExitException, SandboxException, SandboxNotFoundException

from agent_runner.contract.protocol import ErrorType
from host_client.errors import SandboxError, SandboxGoneError, SandboxStartError, StreamLostError

from ._failures import NO_TEMPLATE, Translated
from .inventory import remove, sandboxes

if TYPE_CHECKING:
    from e2b import ApiParams

T = TypeVar("T")

PAUSES = (0.2, 1.0, 4.0)
"""Seconds between tries; one more try than pauses."""

_UNSURE: tuple[ErrorType, ...] = ("network", "timeout")
"""The answer was lost; it may have been done."""

_PASSING: tuple[ErrorType, ...] = (*_UNSURE, "sandbox", "overloaded", "rate_limit")

_REQUEST_SECONDS = 10.0
_LEAVE_SECONDS = 10.0
_logger = logging.getLogger(__name__)


async def make(request: Mapping[str, Any], run_id: str, environ: Mapping[str, str]) -> AsyncSandbox:
    """Create a sandbox, one however often it is asked for; ``request`` is for the SDK. Raise `SandboxError`."""
    try:
        return await _surely(lambda: _create(request, run_id), _UNSURE)
    except StreamLostError as error:
        if not isinstance(error.__cause__, httpx.ConnectError):  # then nothing was sent
            await _remove_unknown(run_id, environ)
        raise


async def _create(request: Mapping[str, Any], run_id: str) -> AsyncSandbox:
    with Translated():
        try:
            # The same key is the same sandbox.
            return await AsyncSandbox.create(**request, idempotency_key=run_id)
        except SandboxException as error:
            if error.status_code != 404:
                raise
            raise SandboxStartError(f"{NO_TEMPLATE} ({error})", "invalid_request") from error


async def reach(sandbox_id: str, timeout: int, connection: ApiParams) -> AsyncSandbox:
    """Connect to a sandbox, and wake it if it is paused; raise `SandboxGoneError` or another `SandboxError`."""

    async def connect() -> AsyncSandbox:
        with Translated():
            return await AsyncSandbox.connect(sandbox_id, timeout=timeout, **connection)

    return await _surely(connect, _PASSING)


async def _remove_unknown(run_id: str, environ: Mapping[str, str]) -> None:
    """Remove what may have been made although nobody said so."""
    try:
        found = [each.sandbox_id for each in await sandboxes(environ, {"sandspan.run_id": run_id})]
        failed = await remove(environ, found)
    except SandboxError as error:
        failed = {"": str(error)}
    if failed:
        _logger.warning("a sandbox may have been made; `host_client sandboxes list` shows it: %s", failed)


async def end(sandbox: AsyncSandbox) -> None:
    """Remove a sandbox; one that is gone is no error. Raise `SandboxError` where it may live on."""

    async def kill() -> None:
        with Translated():
            await sandbox.kill(request_timeout=_REQUEST_SECONDS)

    await _surely(kill, _PASSING)


async def set_aside(sandbox: AsyncSandbox) -> None:
    """Pause a sandbox; raise `SandboxError` where it may run on, `SandboxGoneError` where there is none."""

    async def pause() -> None:
        with Translated():
            try:
                await sandbox.pause()
            except SandboxNotFoundException as error:
                gone = f"sandbox {sandbox.sandbox_id} was gone before it could be paused"
                raise SandboxGoneError(gone) from error

    await _surely(pause, _PASSING)


async def end_earlier(sandbox: AsyncSandbox) -> None:
    """End the processes that an earlier host left in a sandbox that was woken: its runner may have been asleep."""
    with Translated():
        for process in await sandbox.commands.list():
            try:
                await sandbox.commands.run(f"kill -TERM {process.pid}", user="root")
            except CommandExitException:
                continue  # it has ended
        until = asyncio.get_running_loop().time() + _LEAVE_SECONDS
        while left := await sandbox.commands.list():
            if asyncio.get_running_loop().time() > until:
                for process in left:
                    await sandbox.commands.kill(process.pid)
            await asyncio.sleep(0.1)


async def _surely(ask: Callable[[], Awaitable[T]], again: tuple[ErrorType, ...]) -> T:
    """Ask, and ``again`` for errors of these types."""
    for pause in PAUSES:
        try:
            return await ask()
        except SandboxError as error:
            if isinstance(error, SandboxGoneError) or error.error_type not in again:
                raise
            _logger.info("E2B is asked again in %s s: %s", pause, error)
        await asyncio.sleep(pause)
    return await ask()
