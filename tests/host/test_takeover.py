"""Another host takes over a killed host's sessions: in E2B the agent goes on, locally its journal is read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, LocalSandbox, Session, open_session
from host_client.client import takeover
from host_client.client.hooks import HooksByEvent
from host_client.client.host_tools import AnyTool
from host_client.client.options import ApprovalPolicy
from host_client.client.session import Whereabouts
from host_client.client.takeover import take_over
from host_client.errors import ConfigurationError, NotWaitingError, SandboxGoneError, SandspanError, SessionClosedError
from host_client.sandbox.e2b.inventory import remove_session, sandboxes
from host_client.telemetry import root_of
from tests.host.test_e2b_sessions import REPLY, until
from tests.host.test_session import LONG_TOOL, ONE_TOOL
from tests.support.dying_host import DyingHost, Plan, plan_of
from tests.support.e2b import Answer, Hold
from tests.support.hosts import DEFAULT_CHAT, E2BLab, HostLab, e2b_lab, host_lab, numbered, views
from tests.support.runs import SpanView, spans_in, tree

pytestmark = pytest.mark.anyio

GATED = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: cat gate}}]
          - text: First.
          - text: Second.
"""
"""A turn whose tool waits until the pipe ``gate`` is written to, and another turn."""

TWO_TURNS = """
    model: scripted
    conversations:
      main:
        replies:
          - text: First.
          - text: Second.
"""

APPROVED = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: First.
          - text: Second.
"""

CREATED, CLEANED = ["sandbox.create"], ["sandbox.cleanup"]
TURN = ["agent.execute", [DEFAULT_CHAT]]
TOOL_TURN = [*TURN, ["execute_tool Bash"], [DEFAULT_CHAT]]
APPROVED_TURN = [*TURN, ["execute_tool Bash", ["agent.approval"]], [DEFAULT_CHAT]]


def runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_there(directory: str | None) -> bool:
    assert directory is not None
    return Path(directory).is_dir()


def gate_of(lab: E2BLab) -> Path:
    gate = lab.work / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    return gate


def open_gate(gate: Path) -> None:
    gate.write_text("open\n")


@asynccontextmanager
async def taken_over(
    host: DyingHost,
    lab: HostLab,
    *,
    approvals: ApprovalPolicy = "ask",
    host_tools: Sequence[AnyTool] = (),
    hooks: HooksByEvent | None = None,
    own: list[SpanView] | None = None,
) -> AsyncGenerator[Session]:
    """Kill the host and take its session over from the whereabouts that it reported."""
    host.kill()
    stored = msgspec.json.decode(msgspec.json.encode(host.whereabouts), type=Whereabouts)
    plan = host.plan
    async with take_over(
        stored,
        AgentOptions(allowed_tools=plan.allowed_tools, user_id="ada"),
        session_id=plan.session_id,
        root=plan.root,
        seen_seq=host.seen_seq,
        sandbox=lab.sandbox() if isinstance(lab, E2BLab) else LocalSandbox(),
        approvals=approvals,
        host_tools=host_tools,
        hooks=hooks,
        environ=lab.environ,
        on_own_spans=lambda request: own.extend(spans_in(request)) if own is not None else None,
    ) as session:
        yield session


async def rest_of(session: Session, *prompts: str) -> list[p.AnyEvent]:
    """Read all events; after each result send the next prompt, and after the last result finish. Return the events."""
    left, seen = list(prompts), list[p.AnyEvent]()
    async with asyncio.timeout(60):
        async for event in session:
            seen.append(event)
            if isinstance(event, p.Result):
                await (session.send(left.pop(0)) if left else session.finish())
    return seen


def check_trace(session: Session, plan: Plan, *below: Any, failed: str = "") -> list[SpanView]:
    """Check that a session's spans form one trace below its announced root, each once; return the spans."""
    spans = views(session.trace.kept)
    assert tree(spans) == [["agent.session" + failed, *below]]
    (root,) = [span for span in spans if span.name == "agent.session"]
    announced = plan.root
    assert (root.trace_id, root.span_id, root.start) == (announced.trace_id, announced.span_id, announced.start)
    assert {span.attributes["session.id"] for span in spans} == {plan.session_id}
    assert {span.attributes["user.id"] for span in spans} == {"ada"}
    return spans


def check_whole(host: DyingHost, rest: list[p.AnyEvent]) -> None:
    """Check that the two hosts together received every event once, up to the end."""
    both = [*numbered(host.events), *numbered(rest)]
    assert both == list(range(1, len(both) + 1))
    assert isinstance(rest[-1], p.End)


async def test_a_turn_goes_on_under_another_host() -> None:
    with e2b_lab(GATED) as lab:
        gate, plan = gate_of(lab), plan_of("e2b", allowed_tools=["Bash"])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            own: list[SpanView] = []
            async with taken_over(host, lab, own=own) as session:
                assert session.claude_session_id is not None
                open_gate(gate)
                rest = await rest_of(session, "more")
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]
    check_whole(host, rest)
    assert [event.data.result for event in rest if isinstance(event, p.Result)] == ["First.", "Second."]
    assert (session.exit_code, session.failure) == (0, None)
    spans = check_trace(session, plan, CREATED, TOOL_TURN, TURN, CLEANED)
    # Each host reports its own spans as they end, also a span that the other host began.
    assert [span.name for span in host.own_spans] == ["sandbox.create"]
    assert [span.name for span in own] == ["sandbox.cleanup", "agent.session"]
    assert {span.span_id for span in (*host.own_spans, *own)} < {span.span_id for span in spans}


async def test_an_approval_that_waited_through_the_restart_is_answered() -> None:
    with e2b_lab(APPROVED) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            asked = await host.until(p.ApprovalRequest)
            async with taken_over(host, lab) as session:
                assert list(session.waiting.values()) == [asked]
                await session.approve(asked.data.approval_id, decided_by="grace", command_id="its-answer")
                rest = await rest_of(session, "more")
        assert (lab.work / "made").exists()
    check_whole(host, rest)
    (resolved,) = [event for event in rest if isinstance(event, p.ApprovalResolved)]
    assert (resolved.data.decision, resolved.data.decided_by) == ("allow", "grace")
    check_trace(session, plan, CREATED, APPROVED_TURN, TURN, CLEANED)


async def test_what_waited_is_decided_by_the_new_hosts_policy() -> None:
    with e2b_lab(APPROVED) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ApprovalRequest)
            async with taken_over(host, lab, approvals="auto") as session:
                rest = await rest_of(session)
    check_whole(host, rest)
    (resolved,) = [event for event in rest if isinstance(event, p.ApprovalResolved)]
    assert resolved.data.decided_by == "policy:auto"


async def test_what_both_hosts_send_is_taken_once() -> None:
    with e2b_lab(APPROVED) as lab:
        plan = plan_of("e2b", approve_as="its-answer", commands=[["first", "go"], ["second", "more"]])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ApprovalRequest)
            await host.until_done("its-answer")
            approval_id = next(event.data.approval_id for event in host.events if isinstance(event, p.ApprovalRequest))
            await host.until_done("second")
            async with taken_over(host, lab) as session:
                with pytest.raises(NotWaitingError):
                    await session.approve(approval_id, command_id="its-answer")
                await session.send("more", command_id="second")
                await session.finish()
                async with asyncio.timeout(60):
                    rest = [event async for event in session]
    check_whole(host, rest)
    results = [event for event in (*host.events, *rest) if isinstance(event, p.Result)]
    assert [event.data.result for event in results] == ["First.", "Second."]
    assert session.cost_usd == pytest.approx(sum(event.data.cost_usd for event in results))
    assert [event for event in (*host.events, *rest) if isinstance(event, p.Error)] == []


async def test_between_turns_the_conversation_goes_on() -> None:
    with e2b_lab(TWO_TURNS) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            first = await host.until(p.Result)
            async with taken_over(host, lab) as session:
                assert session.cost_usd == first.data.cost_usd
                await session.send("more")
                rest = await rest_of(session)
    check_whole(host, rest)
    assert [event.data.result for event in rest if isinstance(event, p.Result)] == ["Second."]
    check_trace(session, plan, CREATED, TURN, TURN, CLEANED)


async def test_a_host_that_had_seen_nothing_leaves_everything_to_the_next() -> None:
    with e2b_lab(REPLY) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            await host.until_done("first")
            host.events.clear()
            async with taken_over(host, lab) as session:
                rest = await rest_of(session)
    check_whole(host, rest)
    check_trace(session, plan, CREATED, TURN, CLEANED)


async def test_a_runner_that_has_not_begun_its_journal_is_waited_for() -> None:
    with e2b_lab(REPLY) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            await host.until_done("first")
            runner = lab.e2b.sandboxes[0].processes[0]
            await until(lambda: list(lab.state.iterdir()) != [])
            (journal,) = lab.state.iterdir()
            aside = journal.rename(lab.root / "aside")
            host.events.clear()
            going_on = asyncio.ensure_future(_rest_after(host, lab))
            await until(lambda: len(lab.e2b.sandboxes[0].processes) > 5)
            assert runner.end is None
            aside.rename(journal)
            session, rest = await going_on
    check_whole(host, rest)
    check_trace(session, plan, CREATED, TURN, CLEANED)


async def _rest_after(host: DyingHost, lab: E2BLab) -> tuple[Session, list[p.AnyEvent]]:
    async with taken_over(host, lab) as session:
        return session, await rest_of(session)


async def test_a_runner_that_ended_meanwhile_is_read_to_its_end() -> None:
    with e2b_lab(GATED) as lab:
        gate, plan = gate_of(lab), plan_of("e2b", allowed_tools=["Bash"], finish=True)
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            host.kill()
            open_gate(gate)
            runner = lab.e2b.sandboxes[0].processes[0]
            await until(lambda: runner.end is not None)
            async with taken_over(host, lab) as session:
                with pytest.raises(SessionClosedError):
                    await session.send("more")
                rest = await rest_of(session)
    check_whole(host, rest)
    assert (session.exit_code, session.failure) == (0, None)
    check_trace(session, plan, CREATED, TOOL_TURN, CLEANED)


async def test_a_runner_that_was_killed_meanwhile_ends_as_it_does_under_a_living_host() -> None:
    with e2b_lab(GATED) as lab:
        gate_of(lab)
        plan = plan_of("e2b", allowed_tools=["Bash"])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            host.kill()
            runner = lab.e2b.sandboxes[0].processes[0]
            lab.e2b.kill_process(runner.pid)
            await until(lambda: runner.end is not None)
            own: list[SpanView] = []
            async with taken_over(host, lab, own=own) as session:
                async with asyncio.timeout(60):
                    rest = [event async for event in session]
    assert session.failure is not None
    assert "was killed by signal 9 without an end event" in session.failure.message
    assert session.exit_code == -9
    assert isinstance(rest[-1], p.Error)
    (turn,) = [span for span in views(session.trace.kept) if span.name == "agent.execute"]
    (tool,) = [span for span in views(session.trace.kept) if span.name.startswith("execute_tool")]
    assert (turn.status, tool.status, tool.parent_span_id) == (2, 2, turn.span_id)
    assert turn.parent_span_id == plan.root.span_id
    assert sorted(span.name for span in own) == [
        "agent.execute",
        "agent.session",
        "execute_tool Bash",
        "sandbox.cleanup",
    ]


async def test_a_sandbox_that_is_gone_is_told_and_the_session_ended_once() -> None:
    with e2b_lab(GATED) as lab:
        gate_of(lab)
        plan = plan_of("e2b", allowed_tools=["Bash"])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            host.kill()
            lab.e2b.lose(lab.e2b.sandboxes[0].id)
            own: list[SpanView] = []
            with pytest.raises(SandboxGoneError, match="the sandbox no longer exists"):
                async with taken_over(host, lab, own=own):
                    raise AssertionError("there is nothing to go on with")
    assert [span.name for span in own] == ["sandbox.cleanup", "agent.session"]
    assert own[-1].attributes["error.type"] == "sandbox"


async def test_what_cannot_be_taken_over_now_can_be_later() -> None:
    with e2b_lab(REPLY) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.Result)
            lab.e2b.fail("POST /v2/sandboxes/*/connect", Answer(403))
            own: list[SpanView] = []
            with pytest.raises(SandspanError):
                async with taken_over(host, lab, own=own):
                    raise AssertionError("E2B refused")
            assert own == []
            assert [made.state for made in lab.e2b.sandboxes] == ["running"]
            async with taken_over(host, lab, own=own) as session:
                await session.finish()
                rest = await rest_of(session)
    check_whole(host, rest)
    check_trace(session, plan, CREATED, TURN, CLEANED)


async def test_a_session_that_another_took_over_is_left_alone() -> None:
    with e2b_lab(TWO_TURNS) as lab:
        root, own = root_of(), list[SpanView]()
        options = AgentOptions(user_id="ada")

        def keep(request: bytes) -> None:
            own.extend(spans_in(request))

        async with open_session(
            "go", options, sandbox=lab.sandbox(), environ=lab.environ, root=root, on_own_spans=keep
        ) as first:
            seen = [event async for event in _up_to_result(first)]
            whereabouts = first.whereabouts
            assert whereabouts is not None
            await first.abandon()
            assert [event async for event in first] == []
            with pytest.raises(SessionClosedError):
                await first.send("more")
        made = lab.e2b.sandboxes[0]
        assert (made.state, made.processes[0].end) == ("running", None)
        assert [span.name for span in own] == ["sandbox.create"]
        last = max(event.seq or 0 for event in seen)
        async with take_over(
            whereabouts,
            options,
            session_id=first.id,
            root=root,
            seen_seq=last,
            sandbox=lab.sandbox(),
            environ=lab.environ,
        ) as second:
            await second.send("more")
            rest = await rest_of(second)
        assert made.state == "gone"
    both = numbered([*seen, *rest])
    assert both == list(range(1, len(both) + 1))
    assert tree(views(second.trace.kept)) == [["agent.session", CREATED, TURN, TURN, CLEANED]]


async def _up_to_result(session: Session) -> AsyncGenerator[p.AnyEvent]:
    async for event in session:
        yield event
        if isinstance(event, p.Result):
            return


async def test_a_sandbox_whose_host_died_before_it_told_of_it_is_found_by_the_session() -> None:
    with e2b_lab(REPLY) as lab:
        hold, plan = Hold(), plan_of("e2b")
        lab.e2b.fail("POST /process.Process/Start", hold)
        with DyingHost(plan, lab.environ) as host:
            await asyncio.to_thread(hold.met.result, 60)
            host.kill()
            hold.release()
        assert await remove_session(lab.environ, "another") == 0
        assert [made.state for made in lab.e2b.sandboxes] == ["running"]
        assert await remove_session(lab.environ, plan.session_id) == 1
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]
        assert await remove_session(lab.environ, plan.session_id) == 0


@pytest.mark.parametrize("outlives_host", [False, True])
async def test_what_outlives_its_host_is_not_swept_while_another_may_come(outlives_host: bool) -> None:
    with e2b_lab(REPLY) as lab:
        plan = plan_of("e2b", outlives_host=outlives_host)
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.Result)
            host.kill()
            (left,) = await sandboxes(lab.environ, {"session.id": plan.session_id})
            now = datetime.now(UTC)
            assert left.is_abandoned(now) is not outlives_host
            assert left.is_abandoned(now + timedelta(seconds=left.timeout * 2 / 3))
        assert await remove_session(lab.environ, plan.session_id) == 1


async def test_a_journal_that_lacks_what_was_seen_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(takeover, "CATCH_UP_SECONDS", 0.05)
    with e2b_lab(APPROVED) as lab:
        plan = plan_of("e2b")
        with DyingHost(plan, lab.environ) as host:
            asked = await host.until(p.ApprovalRequest)
            host.events.append(msgspec.structs.replace(asked, seq=1000))
            async with taken_over(host, lab, approvals="auto") as session:
                await session.finish()
                async with asyncio.timeout(60):
                    assert [event async for event in session] == []
        assert (lab.work / "made").exists()
    assert "before event 1000" in caplog.text
    assert (session.exit_code, session.failure) == (0, None)


async def test_a_root_is_announced_once() -> None:
    with pytest.raises(ConfigurationError, match="root_of"):
        async with open_session(root=root_of(), traceparent=f"00-{'c' * 32}-{'d' * 16}-01"):
            raise AssertionError("two traces for one session")


# -- local: the agent ends with its host -----------------------------------------------------------------


async def test_a_local_agent_ends_with_its_host_and_its_session_says_so() -> None:
    with host_lab(LONG_TOOL) as lab:
        plan = plan_of("local", allowed_tools=["Bash"])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            assert is_there(host.whereabouts.info.root)
            async with taken_over(host, lab) as session:
                async with asyncio.timeout(60):
                    rest = [event async for event in session]
            await until(lambda: not runs(int(host.whereabouts.process_id)))
    assert isinstance(rest[-1], p.Error)
    assert session.failure is not None
    assert session.failure.error_type == "sandbox"
    assert "the agent ran locally, in a service that has ended" in session.failure.message
    both = [*numbered(host.events), *numbered(rest)]
    assert both == list(range(1, len(both) + 1))
    assert not is_there(host.whereabouts.info.root)
    spans = [span for span in views(session.trace.kept) if span.name != DEFAULT_CHAT]
    turn = ["agent.execute !sandbox", ["execute_tool Bash !sandbox"]]
    assert tree(spans) == [["agent.session !sandbox", CREATED, turn, CLEANED]]


async def test_what_a_local_agent_did_without_its_host_is_told() -> None:
    with host_lab(ONE_TOOL) as lab:
        plan = plan_of("local")
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ApprovalRequest)
            host.kill()
            journal = Path(host.whereabouts.info.journal)
            await until(lambda: b'{"type":"end",' in journal.read_bytes())
            async with taken_over(host, lab) as session:
                async with asyncio.timeout(60):
                    rest = [event async for event in session]
    check_whole(host, rest)
    (resolved,) = [event for event in rest if isinstance(event, p.ApprovalResolved)]
    assert (resolved.data.decision, resolved.data.decided_by) == ("deny", "runner:no-one-to-ask")
    assert [type(event) for event in rest[-2:]] == [p.Error, p.End]
    assert session.failure is not None
    assert session.failure.error_type == "sandbox"
    denied = ["execute_tool Bash !permission_denied", ["agent.approval"]]
    check_trace(session, plan, CREATED, [*TURN, denied, [DEFAULT_CHAT]], CLEANED, failed=" !sandbox")


async def test_a_local_session_whose_files_are_gone_is_gone() -> None:
    with host_lab(LONG_TOOL) as lab:
        plan = plan_of("local", allowed_tools=["Bash"])
        with DyingHost(plan, lab.environ) as host:
            await host.until(p.ToolUse)
            host.kill()
            os.unlink(host.whereabouts.info.journal)
            with pytest.raises(SandboxGoneError, match="its files no longer exist"):
                async with taken_over(host, lab):
                    raise AssertionError("there is nothing to go on with")
        assert not is_there(host.whereabouts.info.root)
