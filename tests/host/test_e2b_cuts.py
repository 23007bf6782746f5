"""Runs in E2B whose streams are cut at random have every event once and a whole trace."""

from __future__ import annotations

import asyncio

import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import decode_event
from host_client import AgentOptions, run_agent
from tests.host.test_session import ONE_TOOL, WHOLE_TRACE
from tests.support.e2b import CutAtRandom, random_chunks
from tests.support.hosts import e2b_lab, numbered, views
from tests.support.runs import tree

RUNS = 6
AT_ONCE = 3
CUTS = 6
"""Number of streams of a run that are cut; the next one is left whole."""

MOST_BYTES = 12_000
"""Maximum number of bytes before a cut; a run's stream has about 15,000 bytes."""


async def one_run(seed: int) -> int:
    """Run one tool with cut streams and check the result; return the number of streams that were cut."""
    with e2b_lab(ONE_TOOL) as lab:
        faults = [CutAtRandom(seed * CUTS + n, MOST_BYTES) for n in range(CUTS)]
        for fault in faults:
            lab.e2b.fail("POST /process.Process/Start", fault)
        lab.e2b.rechunk(random_chunks(seed, 400))
        seen: list[p.AnyEvent] = []
        result = await run_agent(
            "go",
            AgentOptions(user_id="ada"),
            sandbox=lab.sandbox(),
            approvals="auto",
            environ=lab.environ,
            on_event=seen.append,
        )
        [journal] = lab.state.iterdir()
        kept = [decode_event(line) for line in journal.read_bytes().split(b"\n") if line]
    assert (result.text, result.error_type, result.exit_code) == ("Done.", None, 0), (seed, result.error_message)
    assert [event for event in seen if event.seq is not None] == kept, seed
    assert numbered(seen) == list(range(1, len(kept) + 1)), seed
    assert tree(views(result.spans)) == WHOLE_TRACE, seed
    return sum(fault.cuts for fault in faults)


@pytest.mark.timeout(300)
@pytest.mark.anyio
async def test_runs_with_streams_cut_at_random_lose_and_double_nothing() -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def bounded(seed: int) -> int:
        async with free:
            return await one_run(seed)

    cuts = await asyncio.gather(*(bounded(seed) for seed in range(RUNS)))
    assert sum(cuts) > 1.5 * RUNS
