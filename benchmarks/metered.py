"""A local sandbox whose runner writes its CPU time into a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from host_client.sandbox.local import LocalProcess, LocalSandbox

from .metered_runner import VARIABLE
from .support import REPOSITORY

LEAVE_SECONDS = 30.0


class MeteredSandbox(LocalSandbox):
    """A local sandbox; its runner writes its own and its CLI's CPU seconds into the file ``cpu``, as a JSON list."""

    def __init__(self, cpu: Path) -> None:
        super().__init__()
        self._cpu = cpu

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        assert self._root is not None
        pipe = asyncio.subprocess.PIPE
        own = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self._root / "home")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.metered_runner",
            *args,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**own, **env, "PYTHONPATH": str(REPOSITORY), VARIABLE: str(self._cpu)},
            cwd=self.work,
            start_new_session=True,
        )
        started = LocalProcess(process, 0)
        self._processes.append(started)
        return started

    async def close(self) -> None:
        for process in self._processes:  # a killed runner writes nothing
            async with asyncio.timeout(LEAVE_SECONDS):
                await process.wait()
        await super().close()
