"""When a stream in E2B stays open but silent, the host reads the runner's progress from its journal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, Session, open_session, run_agent
from host_client.client import _output_reader as listener
from host_client.client import _stream as stream
from host_client.sandbox.e2b import _process as process
from tests.host.test_e2b_scenarios import bash, replies
from tests.host.test_e2b_sessions import until
from tests.host.test_session import LONG_TOOL
from tests.support.hosts import E2BLab, e2b_lab
from tests.support.remote import fifo_of, read, run_remotely, runner_pid, trace_of
from tests.support.runs import CHAT, Fifo

pytestmark = pytest.mark.anyio

BASH = AgentOptions(allowed_tools=("Bash",))
WAIT_FOR_GO = bash("echo $$ > up; cat go")
"""A tool that writes its pid to the pipe ``up`` and ends once the pipe ``go`` was written to."""

GONE = "the sandbox no longer exists: its time was up (--timeout), or it was removed"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host regard a stream as silent after 0.1 s."""
    monkeypatch.setattr(listener, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(stream, "GRACE_SECONDS", 0.3)


def pipes_of(lab: E2BLab) -> tuple[Fifo, Path]:
    """Make the pipes of `WAIT_FOR_GO`; return ``up`` for reading, and the path of ``go``."""
    go = lab.work / "go"
    os.mkfifo(go)
    go.chmod(0o644)
    return fifo_of(lab), go


def commands(lab: E2BLab, words: str) -> int:
    """Count the commands in the first sandbox that contain these words."""
    return sum(words in process.command.args[-1] for process in lab.e2b.sandboxes[0].processes)


def looks(lab: E2BLab) -> int:
    return commands(lab, "/usr/bin/tail")


def attaches(lab: E2BLab) -> int:
    return commands(lab, "agent_runner attach")


@pytest.mark.usefixtures("impatient")
async def test_a_run_whose_stream_falls_silent_goes_on_by_its_journal_and_loses_and_doubles_nothing() -> None:
    with e2b_lab(replies(WAIT_FOR_GO, {"text": "Done."})) as lab:
        up, go = pipes_of(lab)

        async def fall_silent(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                await read(up)
                assert lab.e2b.silence_streams()
                await asyncio.to_thread(go.write_text, "")

        done = await run_remotely(lab, options=BASH, react=fall_silent)
        assert attaches(lab) >= 1
    assert (done.result.text, done.exit_code) == ("Done.", 0)
    assert done.tree == trace_of(["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]])


@pytest.mark.usefixtures("impatient")
async def test_a_journal_whose_stream_falls_silent_too_is_attached_to_again() -> None:
    with e2b_lab(replies(WAIT_FOR_GO, WAIT_FOR_GO, {"text": "Done."})) as lab:
        up, go = pipes_of(lab)
        seen: list[int] = []

        async def fall_silent(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                await read(up)
                seen.append(attaches(lab))
                lab.e2b.silence_streams()
                await asyncio.to_thread(go.write_text, "")

        done = await run_remotely(lab, options=BASH, react=fall_silent)
        assert seen[0] < seen[1] < attaches(lab)
    assert (done.result.text, done.exit_code) == ("Done.", 0)


@pytest.mark.usefixtures("impatient")
async def test_a_tool_that_says_nothing_for_long_leaves_its_stream_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "GRACE_SECONDS", 20.0)
    with e2b_lab(replies(WAIT_FOR_GO, {"text": "Done."})) as lab:
        up, go = pipes_of(lab)

        async def wait_long(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                await read(up)
                before = looks(lab)
                await until(lambda: looks(lab) >= before + 5)
                await asyncio.to_thread(go.write_text, "")

        done = await run_remotely(lab, options=BASH, react=wait_long)
        assert attaches(lab) == 0
    assert (done.result.text, done.exit_code) == ("Done.", 0)


async def outcome(lab: E2BLab, does: Callable[[str], object], timeout: int = 300) -> tuple[int | None, str]:
    """Run until a long tool starts, silence its stream, call ``does``; return exit code and error message."""

    async def act(event: p.AnyEvent) -> None:
        if isinstance(event, p.ToolUse):
            lab.e2b.silence_streams()
            # In a thread, as it may block on the stand-in, which in turn may wait for this loop.
            await asyncio.to_thread(does, lab.e2b.sandboxes[0].id)

    result = await run_agent("go", BASH, sandbox=lab.sandbox(timeout=timeout), environ=lab.environ, on_event=act)
    return result.exit_code, result.error_message or ""


@pytest.mark.usefixtures("impatient")
async def test_a_sandbox_that_is_gone_while_its_stream_is_silent_is_told_as_gone() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        code, message = await outcome(lab, lab.e2b.lose)
    assert code is None
    assert message.startswith(GONE)


async def test_a_renewal_that_finds_no_sandbox_ends_the_session_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SILENCE_SECONDS", 3600.0)
    with e2b_lab(LONG_TOOL) as lab:
        code, message = await outcome(lab, lab.e2b.lose, timeout=10)
    assert code is None
    assert message.startswith(GONE)


@pytest.mark.usefixtures("impatient")
async def test_a_runner_that_is_killed_while_its_stream_is_silent_is_told_by_its_signal() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        code, message = await outcome(lab, lambda _: os.kill(runner_pid(lab), 9))
    assert code == -9
    assert message.startswith("the runner was killed by signal 9 without an end event")


@pytest.mark.usefixtures("impatient")
async def test_a_sandbox_that_does_not_answer_is_attached_to_when_it_does() -> None:
    with e2b_lab(replies(WAIT_FOR_GO, {"text": "Done."})) as lab:
        up, go = pipes_of(lab)

        async def cut_off(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                await read(up)
                made, asked = lab.e2b.sandboxes[0].id, len(lab.e2b.requests)
                lab.e2b.close_port(made)
                await until(lambda: len(lab.e2b.requests) >= asked + 3)
                lab.e2b.open_port(made)
                await asyncio.to_thread(go.write_text, "")

        done = await run_remotely(lab, options=BASH, react=cut_off)
        assert attaches(lab) >= 1
    assert (done.result.text, done.exit_code) == ("Done.", 0)


@pytest.mark.usefixtures("impatient")
async def test_a_look_whose_own_stream_is_silent_is_given_up_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough for a response to begin on a busy machine, so that only a silent one exceeds it.
    monkeypatch.setattr(process, "LOOK_SECONDS", 3.0)
    with e2b_lab(replies(WAIT_FOR_GO, {"text": "Done."})) as lab:
        up, go = pipes_of(lab)

        async def fall_silent(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                await read(up)
                await until(lambda: lab.e2b.silence_streams() == 2)
                await asyncio.to_thread(go.write_text, "")

        done = await run_remotely(lab, options=BASH, react=fall_silent)
    assert (done.result.text, done.exit_code) == ("Done.", 0)


async def test_closing_a_session_whose_stream_is_silent_takes_the_runners_last_words() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        async with open_session("go", BASH, sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.ToolUse):
                    break
            lab.e2b.silence_streams()
    assert session.exit_code == 130
