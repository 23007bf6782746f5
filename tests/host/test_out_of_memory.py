"""A runner that the kernel killed for lack of memory is distinguished from one that was killed otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client import LocalSandbox, open_session
from host_client.errors import SessionClosedError
from host_client.sandbox.local import LocalProcess
from tests.host.test_session import LONG_TOOL
from tests.support.hosts import host_lab, views
from tests.support.runs import runner_below

pytestmark = pytest.mark.anyio

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMIT = 4 * 1024 * 1024


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """Make a control group limited to 4 MB; skip without root, but fail in CI."""
    parent, limit = (V1, "memory.limit_in_bytes") if (V1 / "memory.limit_in_bytes").exists() else (V2, "memory.max")
    group = parent / f"sandspan-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
    except OSError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs root and a control group of its own: {error}")
    yield group
    group.rmdir()


class Watched(LocalSandbox):
    """A local sandbox that keeps the runner's process, so that a test can move it into a control group."""

    runner: LocalProcess | None = None

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        process = await super().run(args, env)
        self.runner = self.runner or process
        return process


async def test_a_runner_out_of_memory_is_told_as_such(small_cgroup: Path) -> None:
    sandbox, seen = Watched(), list[p.AnyEvent]()
    with host_lab(LONG_TOOL) as lab:
        async with open_session("go", sandbox=sandbox, approvals="auto", environ=lab.environ) as session:
            async for event in session:
                seen.append(event)
                if isinstance(event, p.ApprovalResolved):
                    assert sandbox.runner is not None
                    # Only memory allocated from now on counts; a prompt of 12 MB exceeds the limit of 4 MB.
                    (small_cgroup / "cgroup.procs").write_text(str(runner_below(sandbox.runner.pid)))
                    with pytest.raises(SessionClosedError):
                        await session.send("x" * 12 * 1024 * 1024)
    assert session.failure is not None
    assert (session.failure.error_type, session.exit_code) == ("out_of_memory", -9)
    assert isinstance(seen[-1], p.Error)
    failed = {span.name: span.attributes.get("error.type") for span in views(session.trace.kept)}
    assert failed["execute_tool Bash"] == failed["agent.execute"] == failed["agent.session"] == "out_of_memory"
