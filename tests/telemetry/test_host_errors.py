"""Errors that only the host detects reach observers once each; metrics count lost sessions by them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from agent_runner.contract.protocol import AnyEvent, ApprovalResolved, Error
from host_client import LocalSandbox, Telemetry, run_agent
from host_client.errors import SandboxStartError
from host_client.sandbox.local import LocalProcess
from tests.support.hosts import host_lab

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan
    from host_client.telemetry.calls import ToolCalls
    from host_client.telemetry.tail.pipeline import Who

pytestmark = pytest.mark.anyio

SCRIPT = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: Done.
"""


@dataclass
class Errors:
    """An observer that records the types of errors."""

    types: list[str] = field(default_factory=list[str])

    def begin(self, who: Who, calls: ToolCalls) -> None: ...

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        if isinstance(event, Error):
            self.types.append(event.data.error_type)

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None: ...

    def end(self, who: Who) -> None: ...

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True


class Starting(LocalSandbox):
    """A local sandbox that keeps its first process, or fails to start one if ``broken``."""

    started: LocalProcess | None = None
    broken = False

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        if self.broken:
            raise SandboxStartError("there is no room")
        process = await super().run(args, env)
        self.started = self.started or process
        return process


async def test_a_killed_runner_is_told_once() -> None:
    errors, sandbox = Errors(), Starting()

    def kill(event: AnyEvent) -> None:
        if isinstance(event, ApprovalResolved):
            assert sandbox.started is not None
            os.kill(sandbox.started.pid, signal.SIGKILL)

    with host_lab(SCRIPT) as lab:
        telemetry = Telemetry(observers=[errors])
        result = await run_agent(
            "go", sandbox=sandbox, approvals="auto", telemetry=telemetry, environ=lab.environ, on_event=kill
        )
        telemetry.shutdown()
    assert result.error_type == "sandbox"
    assert errors.types == ["sandbox"]


async def test_a_sandbox_that_does_not_start_is_told_once() -> None:
    errors, sandbox = Errors(), Starting()
    sandbox.broken = True
    telemetry = Telemetry(observers=[errors])
    with host_lab(SCRIPT) as lab, pytest.raises(SandboxStartError):
        await run_agent("go", sandbox=sandbox, telemetry=telemetry, environ=lab.environ)
    telemetry.shutdown()
    assert errors.types == ["sandbox"]


async def test_a_run_that_ends_well_tells_none() -> None:
    errors = Errors()
    with host_lab(SCRIPT) as lab:
        telemetry = Telemetry(observers=[errors])
        await run_agent("go", approvals="auto", telemetry=telemetry, environ=lab.environ)
        telemetry.shutdown()
    assert errors.types == []
