"""A host whose destinations are all down: it ends (``closes``), or is killed (``dies``), and leaves a spool and costs.

A spool drops what is older than a week, so what this process spools is a century younger than it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from agent_runner.contract import protocol as p
from host_client import AgentOptions, open_session, run_agent
from host_client.telemetry import Telemetry, initialize_telemetry
from tests.compat.adapter import set_spool_clock
from tests.compat.spools import CompatExporter, config

CENTURY = 100 * 365 * 86400.0


async def _closes(telemetry: Telemetry) -> None:
    ada = AgentOptions(user_id="ada", tenant_id="acme", user_tier="pro", content="full", tool_content="full")
    await run_agent("Use the tool", ada, approvals="auto", telemetry=telemetry)
    bob = AgentOptions(user_id="bob", tenant_id="bolt", attributes={"team": "blue"})
    denied = await run_agent("Use the tool", bob, approvals="deny", telemetry=telemetry)
    assert not denied.is_error
    failed = await run_agent("Be refused", AgentOptions(user_id="bob", tenant_id="bolt"), telemetry=telemetry)
    assert failed.is_error
    telemetry.shutdown(2.0)


async def _dies(telemetry: Telemetry) -> None:
    kept = AgentOptions(user_id="ada", tenant_id="acme")
    await run_agent("Use the tool", kept, approvals="auto", telemetry=telemetry)
    await _lose_a_runner(telemetry)
    free = AgentOptions(user_id="carl", tenant_id="acme", user_tier="free", allowed_tools=("Bash",))
    async with open_session("Use the tool", free, telemetry=telemetry) as session:
        async for event in session:
            if isinstance(event, p.Result):
                telemetry.flush(2.0)  # the trace is not decided before its session ends: it is held
                os.kill(os.getpid(), signal.SIGKILL)


async def _lose_a_runner(telemetry: Telemetry) -> None:
    """A turn that never tells what it cost: only an estimate is noted."""
    quiet = {"PYTHONWARNINGS": "ignore"}  # a warning on stderr names a file of this machine
    dora = AgentOptions(user_id="dora", tenant_id="acme", allowed_tools=("Bash",), env=quiet)
    async with open_session("Sleep", dora, telemetry=telemetry) as session:
        async for event in session:
            if isinstance(event, p.TelemetryEvent):  # the model request that came before the tool call
                assert session.whereabouts is not None
                os.kill(int(session.whereabouts.process_id), signal.SIGKILL)


def main(how: str, folder: Path) -> None:
    """Run sessions and end as asked."""
    set_spool_clock(lambda: time.time() + CENTURY)
    custom = CompatExporter(is_down=True)
    rates = {"free": 0.0}
    telemetry = initialize_telemetry(config(folder / "spool", custom, ledger=folder / "ledger", tier_rates=rates))
    asyncio.run({"closes": _closes, "dies": _dies}[how](telemetry))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
