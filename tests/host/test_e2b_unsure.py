"""E2B may or may not have executed a request whose answer is lost; nothing is left behind, lost or done twice."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, open_session, run_agent
from host_client.errors import StreamLostError
from host_client.sandbox.e2b import _lifecycle as lifecycle
from host_client.sandbox.e2b.inventory import find_session, sandboxes
from tests.host.test_e2b_sessions import REPLY, until
from tests.host.test_session import LONG_TOOL, ONE_TOOL, WHOLE_TRACE
from tests.support.e2b import Answer, Fault, Reset, ResetAfter, Slow
from tests.support.e2b.faults import Rule
from tests.support.hosts import E2BLab, e2b_lab, numbered, views
from tests.support.runs import tree

pytestmark = pytest.mark.anyio

CREATE = "POST /v2/sandboxes"
KILL = "DELETE /sandboxes/*"
PAUSE = "POST /sandboxes/*/pause"
RENEW = "POST /sandboxes/*/timeout"
START = "POST /process.Process/Start"
COMMAND = "POST /process.Process/SendInput"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "PAUSES", (0.01, 0.01, 0.01))


def states(lab: E2BLab) -> list[str]:
    return [made.state for made in lab.e2b.sandboxes]


async def whole_run(lab: E2BLab, **options: Any) -> list[p.AnyEvent]:
    """Run one tool with an approval; check that every event and span exists once, and return the events."""
    seen: list[p.AnyEvent] = []
    result = await run_agent(
        "go", sandbox=lab.sandbox(**options), approvals="auto", environ=lab.environ, on_event=seen.append
    )
    assert (result.text, result.error_type, result.exit_code) == ("Done.", None, 0)
    assert numbered(seen) == list(range(1, len(numbered(seen)) + 1))
    assert [event.data for event in seen if isinstance(event, p.ToolResult) and event.data.is_error] == []
    assert tree(views(result.spans)) == WHOLE_TRACE
    return seen


# -- commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Reset(), ResetAfter(), Answer(502), Answer(503)], ids=str)
async def test_a_command_whose_delivery_is_unsure_is_sent_again_and_taken_once(fault: Fault) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        # The prompt, the end of the prompts and the approval each fail twice.
        prompt, finish, approval = (lab.e2b.fail(COMMAND, fault, skip=skip, times=2) for skip in range(3))
        seen = await whole_run(lab)
        assert (prompt.met, finish.met) == (2, 2)
        # A runner that got the last command in spite of the reset may have ended before the command is sent again.
        assert approval.met == 2 or (isinstance(fault, ResetAfter) and approval.met == 1)
    assert [event for event in seen if isinstance(event, p.Error)] == []
    assert len([event for event in seen if isinstance(event, p.TurnStart)]) == 1


async def test_an_approval_that_could_not_be_delivered_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.client._commander.WRITE_ATTEMPTS", 2)
    with e2b_lab(ONE_TOOL) as lab:
        async with open_session("go", sandbox=lab.sandbox(), environ=lab.environ) as session:
            await session.finish()
            async for event in session:
                if isinstance(event, p.ApprovalRequest):
                    key = event.data.approval_id
                    lab.e2b.fail(COMMAND, Reset(), times=2)
                    with pytest.raises(StreamLostError):
                        await session.approve(key)
                    assert key in session.waiting
                    await session.approve(key)
        assert session.exit_code == 0


# -- creating a sandbox and starting the runner --------------------------------------------------------------


@pytest.mark.parametrize("fault", [Reset(), ResetAfter()], ids=str)
async def test_a_creation_whose_answer_is_lost_makes_one_sandbox(fault: Fault) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        lab.e2b.fail(CREATE, fault, times=2)
        await whole_run(lab)
        assert states(lab) == ["gone"]


async def test_a_creation_that_is_never_answered_leaves_none() -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(CREATE, ResetAfter(), times=None)
        with pytest.raises(StreamLostError):
            await run_agent("go", sandbox=lab.sandbox(pause=True), environ=lab.environ)
        assert states(lab) == ["gone"]


async def test_a_sandbox_that_may_be_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(CREATE, ResetAfter(), times=None)
        lab.e2b.fail("GET /v2/sandboxes", Answer(500), times=None)
        with caplog.at_level(logging.WARNING, "host_client"), pytest.raises(StreamLostError):
            await run_agent("go", sandbox=lab.sandbox(), environ=lab.environ)
        assert "a sandbox may have been left behind; `host_client sandboxes list` shows it" in caplog.text
        await asyncio.to_thread(lab.e2b.lose, lab.e2b.sandboxes[0].id)


# -- while the runner runs ----------------------------------------------------------------------------------


async def test_a_renewal_that_fails_is_tried_again_sooner(caplog: pytest.LogCaptureFixture) -> None:
    with e2b_lab(REPLY) as lab:
        rule = lab.e2b.fail(RENEW, Answer(500), times=2)
        async with open_session(None, sandbox=lab.sandbox(timeout=10), environ=lab.environ):
            made = lab.e2b.sandboxes[0]
            await until(lambda: len(made.timeouts) >= 2)
        assert rule.met == 2
    assert caplog.text.count("was not renewed") == 2


async def test_refusals_that_pass_do_not_keep_a_lost_stream_from_being_taken_up() -> None:
    with e2b_lab(ONE_TOOL) as lab:
        seen, refusals = list[p.AnyEvent](), list[Rule]()
        async with open_session("go", sandbox=lab.sandbox(), environ=lab.environ) as session:
            await session.finish()
            async for event in session:
                seen.append(event)
                if isinstance(event, p.ApprovalRequest):
                    refusals += [lab.e2b.fail(START, Answer(status)) for status in (429, 500, 502, 503)]
                    lab.e2b.cut_streams()
                    await session.approve(event.data.approval_id)
        assert (session.exit_code, session.failure) == (0, None)
    assert [refusal.met for refusal in refusals] == [1] * 4
    assert numbered(seen) == list(range(1, len(numbered(seen)) + 1))


# -- ending the session -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Reset(), ResetAfter(), Answer(500)], ids=str)
async def test_a_removal_that_fails_is_tried_again(fault: Fault) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        lab.e2b.fail(KILL, fault, times=2)
        await whole_run(lab)
        assert states(lab) == ["gone"]


async def test_a_sandbox_that_cannot_be_removed_is_told_and_closing_again_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with e2b_lab(REPLY) as lab:
        lab.e2b.fail(KILL, Answer(500), times=None)
        sandbox = lab.sandbox()
        async with open_session("go", sandbox=sandbox, environ=lab.environ) as session:
            await session.finish()
            _ = [event async for event in session]
        assert session.left_behind is not None
        assert "may be left behind: E2B failed" in caplog.text
        assert states(lab) == ["running"]
        lab.e2b.heal()
        await sandbox.close()
        assert states(lab) == ["gone"]


async def test_a_pause_that_fails_is_tried_again() -> None:
    with e2b_lab(ONE_TOOL) as lab:
        lab.e2b.fail(PAUSE, Answer(500), times=2)
        await whole_run(lab, pause=True)
        assert states(lab) == ["paused"]


async def test_a_session_that_is_cancelled_while_it_closes_closes_all_the_same() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        rule = lab.e2b.fail("POST /process.Process/CloseStdin", Slow(3.0))

        async def work() -> None:
            options = AgentOptions(allowed_tools=("Bash",))
            async with open_session("go", options, sandbox=lab.sandbox(), environ=lab.environ) as session:
                async for event in session:
                    if isinstance(event, p.ToolUse):
                        return

        running = asyncio.ensure_future(work())
        await until(lambda: rule.met)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert states(lab) == ["gone"]


# -- resumed sandboxes ---------------------------------------------------------------------------------------


async def test_a_session_that_is_kept_is_never_swept_by_the_look_of_its_first_host() -> None:
    with e2b_lab(REPLY) as lab:
        kept, plain = lab.sandbox(pause=True), lab.sandbox()
        await kept.create({"sandspan": "1", "sandspan.run_id": "run-1", "session.id": "kept"})
        await plain.create({"sandspan": "1", "sandspan.run_id": "run-2", "session.id": "plain"})
        for made in lab.e2b.sandboxes:
            made.request["metadata"]["sandspan.pid"] = "2147483647"
        listed = {each.session_id: each for each in await sandboxes(lab.environ, {})}
        assert {name: each.is_abandoned(datetime.now(UTC)) for name, each in listed.items()} == {
            "kept": False,
            "plain": True,
        }
        await kept.close()
        await plain.close()


async def test_a_runner_that_was_asleep_in_a_paused_sandbox_is_ended_before_the_next_begins() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        options = AgentOptions(allowed_tools=("Bash",))
        async with open_session("one", options, sandbox=lab.sandbox(pause=True), environ=lab.environ) as first:
            async for event in first:
                if isinstance(event, p.ToolUse):
                    break
            made = lab.e2b.sandboxes[0]
            asleep = made.processes[0]
            await asyncio.to_thread(lab.e2b.pause, made.id)
            async for _ in first:
                pass
        assert made.state == "paused"
        assert asleep.end is None
        found = await find_session(lab.environ, first.id)
        again = lab.sandbox(resume=found.sandbox_id)
        info = await again.create({"sandspan.run_id": "run-2"})
        assert asleep.end is not None
        assert info.conversation == first.claude_session_id
        await again.close()


async def test_a_journal_without_a_beginning_is_no_conversation() -> None:
    with e2b_lab(REPLY) as lab:
        async with open_session("one", sandbox=lab.sandbox(pause=True), environ=lab.environ) as first:
            await first.finish()
            _ = [event async for event in first]
        for journal in lab.state.iterdir():
            journal.write_text("")
        again = lab.sandbox(resume=lab.e2b.sandboxes[0].id)
        with pytest.raises(Exception, match="holds no conversation"):
            await again.create({"sandspan.run_id": "run-2"})
        await again.close()
        assert states(lab) == ["paused"]
