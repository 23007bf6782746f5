"""A sandbox reports the last event in a runner's journal, which the host asks for while the stream is silent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, LocalSandbox, open_session
from host_client.client._output_reader import OutputReader
from host_client.sandbox import Progress, Sandbox
from host_client.sandbox.base import seq_in
from tests.host.test_session import LONG_TOOL
from tests.support.hosts import HostLab, e2b_lab, host_lab
from tests.support.told_sandbox import ToldProcess, ToldSandbox

pytestmark = pytest.mark.anyio

BASH = AgentOptions(allowed_tools=("Bash",))


async def progress_in_a_tool(lab: HostLab, sandbox: Sandbox) -> tuple[Progress, Progress, int | None]:
    """Return the progress of a runner in a tool, that of a missing process, and the last received sequence number."""
    async with open_session("go", BASH, sandbox=sandbox, environ=lab.environ) as session:
        async for event in session:
            if isinstance(event, p.ToolUse):
                assert session.whereabouts is not None
                info, runner = session.whereabouts.info, session.whereabouts.process_id
                told = await sandbox.progress(info.journal, runner)
                unknown = await sandbox.progress(f"{info.journal}.not", "999999999")
                return told, unknown, event.seq
    raise AssertionError("no tool ran")


async def test_the_progress_of_a_local_runner_is_its_journals_last_event() -> None:
    with host_lab(LONG_TOOL) as lab:
        told, unknown, seq = await progress_in_a_tool(lab, LocalSandbox())
    assert (told, unknown) == (Progress(seq or 0, True), Progress(0, False))


async def test_the_progress_of_a_runner_in_e2b_is_its_journals_last_event() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        told, unknown, seq = await progress_in_a_tool(lab, lab.sandbox())
    assert (told, unknown) == (Progress(seq or 0, True), Progress(0, False))


@pytest.mark.parametrize(
    ("journal", "seq"),
    [
        (b"", 0),
        (b'{"seq":1,"data":{}}\n', 1),
        (b'{"seq":1,"data":{}}\n{"seq":2,"da', 2),
        (b'{"seq":1,"data":{}}\n{"se', 0),
        (b'{"seq":1,"data":"%b"}\n' % (b"x" * 300_000), 1),
        (b'{"seq":1,"data":"%b"}\n{"seq":2,"data":"%b"}\n' % (b"x" * 900_000, b"y" * 3_000_000), 2),
    ],
    ids=["empty", "one", "cut", "cut early", "long", "longer"],
)
async def test_the_last_event_is_found_by_the_beginning_of_the_last_line(
    tmp_path: Path, journal: bytes, seq: int
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(journal)
    assert await LocalSandbox().progress(str(path), "1") == Progress(seq, False)


def test_a_number_in_an_events_data_is_not_its_seq() -> None:
    assert seq_in(b'{"type":"x","seq":7,"data":{"seq":8}}') == 7
    assert seq_in(b"no event") == 0


async def test_no_chunk_is_lost_that_comes_as_the_wait_for_it_ends() -> None:
    process = ToldProcess(ToldSandbox("0" * 32))
    listener, loop, chunks = OutputReader(process), asyncio.get_running_loop(), list[bytes]()
    sent = [b"%d" % number for number in range(300)]
    begun = loop.time()
    for number, chunk in enumerate(sent):
        loop.call_at(begun + number * 0.002, process.lines.put_nowait, chunk)
    loop.call_at(begun + 0.7, process.lines.put_nowait, None)
    silences = 0
    while True:
        listener.wait_at_most(0.002)  # equal to the interval between two chunks, so that both often coincide
        try:
            chunk = await listener.next()
        except TimeoutError:
            silences += 1
            continue
        if chunk is None:
            break
        chunks.append(chunk)
    assert chunks == sent
    assert silences > 0
